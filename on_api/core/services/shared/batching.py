"""Similar pieces of one user's database work that arrive at the same moment, done in one
transaction.

All of them lock the user's row, so done singly each would wait for the commits of all before. Knows
nothing of what the work is.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from anyio import to_thread

from on_api.core.errors import DatabaseUnavailable
from on_api.core.tracing import detached

MOST_PIECES = 64
"""Most pieces in one transaction."""

Piece = TypeVar("Piece")
Outcome = TypeVar("Outcome")


class Batcher(Generic[Piece, Outcome]):
    """Queue that gathers pieces while the previous transaction runs; a piece never waits for others
    to come.

    `do` does pieces of one user in one transaction, in a thread, and returns the outcome of each.
    When it raises anything but `DatabaseUnavailable`, each piece is done again by itself, so that
    no caller gets another's error.
    """

    def __init__(self, do: Callable[[Sequence[Piece]], Sequence[Outcome]]) -> None:
        self._do = do
        self._waiting: dict[uuid.UUID, list[tuple[Piece, asyncio.Future[Outcome]]]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def do(self, user_id: uuid.UUID, piece: Piece) -> Outcome:
        """Return the outcome of one piece, or raise the error that it caused by itself."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        if (waiting := self._waiting.get(user_id)) is not None:
            waiting.append((piece, future))
        else:
            self._waiting[user_id] = [(piece, future)]
            # Without this request's context: the work is for several requests.
            running = loop.create_task(self._run(user_id), context=detached())
            self._running.add(running)
            running.add_done_callback(self._running.discard)
        return await future

    async def _run(self, user_id: uuid.UUID) -> None:
        try:
            while waiting := self._waiting[user_id]:
                batch, self._waiting[user_id] = waiting[:MOST_PIECES], waiting[MOST_PIECES:]
                if not await self._try(batch):
                    for single in batch:
                        await self._try([single])
        finally:
            for _, future in self._waiting.pop(user_id):
                future.cancel()  # the process ends

    async def _try(self, batch: Sequence[tuple[Piece, asyncio.Future[Outcome]]]) -> bool:
        """Run a batch. Returns False if it failed and its pieces must be run singly."""
        try:
            outcomes = await to_thread.run_sync(self._do, [piece for piece, _ in batch])
        except Exception as error:
            # An unreachable database would only be waited for once more by each piece.
            if len(batch) > 1 and not isinstance(error, DatabaseUnavailable):
                return False
            for _, future in batch:
                if not future.done():  # the caller may be gone
                    future.set_exception(error)
            return True
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)
        return True
