"""Alike pieces of one user's database work that come at the same moment, done in one transaction.

All of them lock the user's row, so one after the other would each wait for the disk of all before.
Knows nothing of what the work is.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

from anyio import to_thread

from on_api.core.errors import DatabaseUnavailable

MOST = 64
"""Pieces in one transaction."""

Piece = TypeVar("Piece")
Outcome = TypeVar("Outcome")


class Together(Generic[Piece, Outcome]):
    """Gathers what comes while the transaction before is under way; nothing ever waits for company.

    `do` does pieces of one user in one transaction, in a thread, and returns the outcome of each.
    When it raises anything but `DatabaseUnavailable`, each piece is done again by itself, so that
    nobody gets another's error.
    """

    def __init__(self, do: Callable[[Sequence[Piece]], Sequence[Outcome]]) -> None:
        self._do = do
        self._waiting: dict[uuid.UUID, list[tuple[Piece, asyncio.Future[Outcome]]]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def do(self, user_id: uuid.UUID, piece: Piece) -> Outcome:
        """The outcome of one piece, or the error that it raised by itself."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        if (waiting := self._waiting.get(user_id)) is not None:
            waiting.append((piece, future))
        else:
            self._waiting[user_id] = [(piece, future)]
            # No context of ours: the work is for several requests, and no line of it is this one's.
            running = loop.create_task(self._run(user_id), context=Context())
            self._running.add(running)
            running.add_done_callback(self._running.discard)
        return await future

    async def _run(self, user_id: uuid.UUID) -> None:
        try:
            while waiting := self._waiting[user_id]:
                batch, self._waiting[user_id] = waiting[:MOST], waiting[MOST:]
                if not await self._try(batch):
                    for single in batch:
                        await self._try([single])
        finally:
            for _, future in self._waiting.pop(user_id):
                future.cancel()  # the process ends

    async def _try(self, batch: Sequence[tuple[Piece, asyncio.Future[Outcome]]]) -> bool:
        """Whether everyone in the batch has an outcome, or an error that is theirs."""
        try:
            outcomes = await to_thread.run_sync(self._do, [piece for piece, _ in batch])
        except Exception as error:
            # A database that doesn't answer would only be waited for once more by each.
            if len(batch) > 1 and not isinstance(error, DatabaseUnavailable):
                return False
            for _, future in batch:
                if not future.done():  # whoever asked may be gone
                    future.set_exception(error)
            return True
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)
        return True
