"""Wake-ups for the worker when there is work: at once in the same process, within half a second in
another one."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from sqlalchemy import event
from sqlalchemy.orm import Session

from on_api.core.models.invalidation import Invalidations


class Wakeup:
    """Wake-ups of one process. If it has no worker of its own, it tells the other processes of its
    work."""

    def __init__(self, invalidations: Invalidations) -> None:
        self._invalidations = invalidations
        self._lock = threading.Lock()
        self._sleepers: list[Sleeper] = []
        invalidations.subscribe_to_work(self.wake)

    def add(self, sleeper: Sleeper) -> None:
        """Wake this sleeper from now on."""
        with self._lock:
            self._sleepers.append(sleeper)

    def remove(self, sleeper: Sleeper) -> None:
        """Stop waking this sleeper."""
        with self._lock, suppress(ValueError):
            self._sleepers.remove(sleeper)

    def wake_after(self, session: Session) -> None:
        """Wake the worker once the session's transaction has committed; not if it is rolled
        back."""
        if not self._sleepers:
            self._invalidations.announce_work(session)
        event.listen(session, "after_commit", lambda _session: self.wake(), once=True)

    def wake(self) -> None:
        """Wake all sleepers of this process. May be called from any thread."""
        with self._lock:
            sleepers = list(self._sleepers)
        for sleeper in sleepers:
            sleeper.wake()


class Sleeper:
    """Sleep that ends when woken. A wake-up during the look for work is not lost: `begin` comes
    before each look."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._woken = asyncio.Event()

    def begin(self) -> None:
        """Begin to look for work: only wake-ups from now on count."""
        self._woken.clear()

    def wake(self) -> None:
        """End the sleep, or the next one. May be called from any thread."""
        with suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._woken.set)

    async def sleep(self, seconds: float) -> bool:
        """Sleep until woken, for `seconds` at most. Returns whether it was woken."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        return self._woken.is_set()
