"""Questions whose answers are kept for a moment, and for which nobody waits too long: the database
or the node may hang.

A question is asked in a task of its own. It is never cut off, since its thread would go on hanging:
later callers wait for the same one. So what hangs costs one task and one thread, however often it
is asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Look(Generic[T]):
    """One question, asked by one task at a time, on one event loop. `ask` turns its failures into
    answers. `fresh`: seconds for which an answer is given again; `deadline`: seconds after the
    question's beginning at which callers are told that there is no answer."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[T]],
        *,
        fresh: float,
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._fresh = fresh
        self._deadline = deadline
        self._clock = clock
        self._task: asyncio.Task[T] | None = None
        self._began = self._ended = float("-inf")

    @property
    def seconds(self) -> float:
        """Seconds since the last question was asked."""
        return self._clock() - self._began

    async def answer(self) -> T | None:
        """Return the answer, or None if there is none at the deadline."""
        now = self._clock()
        if self._task is None or (self._task.done() and now - self._ended >= self._fresh):
            self._began = now
            self._task = asyncio.create_task(self._run())
        task = self._task
        if not task.done():
            await asyncio.wait([task], timeout=max(0.0, self._began + self._deadline - now))
        return task.result() if task.done() else None

    async def close(self) -> None:
        """Cancel the question that is being asked."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> T:
        try:
            return await self._ask()
        finally:
            self._ended = self._clock()
