"""Threads in which passwords and passphrases are hashed, and the queue before them.

scrypt takes a tenth of a second to a second of a processor and 32 to 256 MiB, and any client can
cause it: a login, a link's password. So callers wait here, holding neither a database connection
nor one of the threads that database work needs. `Scrypt` bounds the memory; this decides the order.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from on_api.core.crypto.kdf import Scrypt
from on_api.core.errors import OnApiError, ServiceUnavailable, TooManyRequests
from on_api.core.server_settings import AuthSettings
from on_api.core.services.shared.rate_limits import network_of

T = TypeVar("T")

STRANGERS_PATIENCE_SECONDS = 10.0
"""Seconds that a stranger waits for a turn before a 503."""
KNOWN_PATIENCE_SECONDS = 60.0
"""Seconds that a known caller waits: 20 passphrases of one user take 20 seconds."""

REFUSAL_SECONDS = 1.0
"""Seconds for which a refusal is held back: clients that retry at once would otherwise keep the
event loop busy with refusals."""


@dataclass(frozen=True, slots=True)
class Asker:
    """The party on whose behalf a password is hashed.

    `name` identifies the party that shares a place in the queue: a user, or a whole network.
    `network` is the request's origin, for throttles. Askers that are `known` never wait behind
    strangers.
    """

    name: str
    network: str
    known: bool

    @classmethod
    def stranger(cls, address: str | None) -> Asker:
        """Return the asker for an address without a key."""
        network = network_of(address or "-")
        return cls(network, network, known=False)

    @classmethod
    def user(cls, user_id: uuid.UUID, address: str | None) -> Asker:
        """Return the asker for a user with a valid key."""
        return cls(f"user {user_id}", network_of(address or "-"), known=True)

    @classmethod
    def trusted(cls, subject: str, address: str | None) -> Asker:
        """Return the asker for a network that has sent the right password for this subject
        before."""
        network = network_of(address or "-")
        return cls(f"{subject} from {network}", network, known=True)


class ScryptPool:
    """Pool that runs scrypt work, a few pieces at once; one processor is left for everything else.

    Strangers and known askers form two lines that take turns, and so do the askers within each
    line: an address that floods delays its own requests only. Its coroutines belong to one event
    loop.
    """

    def __init__(self, scrypt: Scrypt, settings: AuthSettings, most_held_back: int) -> None:
        """Limit held-back refusals to `most_held_back`; further ones are sent at once."""
        self._free_threads = max(1, (os.cpu_count() or 1) - 1)
        self._memory = self._free_memory = scrypt.memory
        self._threads = ThreadPoolExecutor(self._free_threads, thread_name_prefix="on-api-scrypt")
        most = settings.scrypt_waiting
        self._strangers = _Line(
            most, settings.scrypt_per_address or most, STRANGERS_PATIENCE_SECONDS
        )
        # No single user can take all places from the others.
        self._known = _Line(most, max(1, most // 2), KNOWN_PATIENCE_SECONDS)
        self._next_line, self._other_line = self._known, self._strangers
        self._most_held_back = most_held_back
        self._held_back = 0
        self._same: dict[tuple[Asker, bytes], asyncio.Task[Any]] = {}

    @property
    def waiting(self) -> int:
        """Number of pieces of work that wait or run."""
        return self._strangers.held + self._known.held

    async def run(
        self, asker: Asker, work: Callable[[], T], *, memory: int, same: bytes | None = None
    ) -> T:
        """Run `work` in a thread when it is the asker's turn and `memory` bytes are free.

        `same` is a digest of all that the work depends on: calls of one asker with the same digest
        share one turn. Raises `TooManyRequests` when too many of the asker's calls are waiting,
        `ServiceUnavailable` when too many are waiting in all or the turn doesn't come in time; and
        what `work` raises.
        """
        if same is None:
            return await self._run(asker, work, memory)
        return await self._together((asker, same), self._run(asker, work, memory))

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown()

    async def _together(self, key: tuple[Asker, bytes], running: Coroutine[Any, Any, T]) -> T:
        task: asyncio.Task[T] | None = self._same.get(key)
        if task is None:
            task = self._same[key] = asyncio.create_task(running)

            def end(ended: asyncio.Task[T]) -> None:
                del self._same[key]
                if not ended.cancelled():
                    ended.exception()  # all waiters may be gone

            task.add_done_callback(end)
        else:
            running.close()
        return await asyncio.shield(task)

    async def _run(self, asker: Asker, work: Callable[[], T], memory: int) -> T:
        line = self._known if asker.known else self._strangers
        if (refusal := line.refusal(asker.name)) is not None:
            await self._hold_back()
            raise refusal
        with line.slot(asker.name):
            loop = asyncio.get_running_loop()
            turn = _Turn(min(memory, self._memory), loop.create_future())
            line.join(asker.name, turn)
            self._begin_turns()
            giving_up = loop.call_later(line.patience, line.give_up, asker.name, turn)
            try:
                await turn.begins
            except BaseException:
                # Only the turn itself tells its state: it may have begun, or been given up, before
                # the cancellation arrived here.
                if turn.has_begun:
                    self._end_turn(turn)
                else:
                    line.leave(asker.name, turn)
                    self._begin_turns()  # there may be memory enough for those behind it
                raise
            finally:
                giving_up.cancel()
            running = self._threads.submit(contextvars.copy_context().run, work)

            def ended(_: Future[T]) -> None:
                with suppress(RuntimeError):  # the loop has ended, and all turns with it
                    loop.call_soon_threadsafe(self._end_turn, turn)

            # Not by the waiter, which may be gone before; nor by the thread, which never runs work
            # that is cancelled before it has begun.
            running.add_done_callback(ended)
            return await asyncio.wrap_future(running)

    async def _hold_back(self) -> None:
        if self._held_back < self._most_held_back:
            self._held_back += 1
            try:
                await asyncio.sleep(REFUSAL_SECONDS)
            finally:
                self._held_back -= 1

    def _begin_turns(self) -> None:
        while self._free_threads:
            line = self._next_line if self._next_line.first else self._other_line
            turn = line.first
            # Large work is waited for: smaller work would otherwise overtake it for ever.
            if turn is None or turn.memory > self._free_memory:
                return
            line.pop()
            if line is self._next_line:
                self._next_line, self._other_line = self._other_line, self._next_line
            self._free_threads -= 1
            self._free_memory -= turn.memory
            turn.has_begun = True
            turn.begins.set_result(None)

    def _end_turn(self, turn: _Turn) -> None:
        self._free_threads += 1
        self._free_memory += turn.memory
        self._begin_turns()


@dataclass(eq=False, slots=True)
class _Turn:
    """Turn of one piece of work that needs `memory` bytes."""

    memory: int
    begins: asyncio.Future[None]
    has_begun: bool = False
    """True if its thread and memory are taken."""


class _Line:
    """Queue of turns by asker; askers take turns."""

    def __init__(self, most: int, most_of_one: int, patience: float) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self.patience = patience
        self._waiting: OrderedDict[str, deque[_Turn]] = OrderedDict()
        self._held: Counter[str] = Counter()
        self.held = 0

    @property
    def first(self) -> _Turn | None:
        """The next turn, past turns that were cancelled but have not left yet; None if empty."""
        while self._waiting:
            turn = next(iter(self._waiting.values()))[0]
            if not turn.begins.done():
                return turn
            self._drop_first()
        return None

    def pop(self) -> None:
        """Remove the first turn and move its asker to the end of the line."""
        name, turns = self._waiting.popitem(last=False)
        turns.popleft()
        if turns:
            self._waiting[name] = turns

    def refusal(self, name: str) -> OnApiError | None:
        """Return the error to raise when an asker can have no further place; None when there is
        one."""
        if self._held[name] >= self._most_of_one:
            return TooManyRequests(
                "Too many password checks for your account are already waiting.", retry_after=1
            )
        return _too_many() if self.held >= self._most else None

    @contextmanager
    def slot(self, name: str) -> Iterator[None]:
        """Hold one of the line's places, while waiting and while running."""
        self.held += 1
        self._held[name] += 1
        try:
            yield
        finally:
            self.held -= 1
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]

    def join(self, name: str, turn: _Turn) -> None:
        self._waiting.setdefault(name, deque()).append(turn)

    def leave(self, name: str, turn: _Turn) -> None:
        """Remove a turn if it is still in the line."""
        turns = self._waiting.get(name, deque())
        if turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[name]

    def _drop_first(self) -> None:
        name, turns = next(iter(self._waiting.items()))
        turns.popleft()
        if not turns:
            del self._waiting[name]

    def give_up(self, name: str, turn: _Turn) -> None:
        if not turn.begins.done():
            self.leave(name, turn)
            turn.begins.set_exception(_too_many())


def _too_many() -> ServiceUnavailable:
    return ServiceUnavailable(
        "Too many passwords are being checked at the moment; try again in a few seconds.",
        retry_after=2,
    )
