"""Tells the worker of the same process at once that there is work; others find it by looking."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from sqlalchemy import event
from sqlalchemy.orm import Session


class Bell:
    """Rung from any thread, heard on the event loop of whoever waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def ring_after(self, session: Session) -> None:
        """Ring once the session's transaction has committed; not if it doesn't."""
        event.listen(session, "after_commit", lambda _session: self.ring(), once=True)

    def ring(self) -> None:
        """Wake everyone who waits."""
        with self._lock:
            waiting = dict(self._waiting)
        for heard, loop in waiting.items():
            with suppress(RuntimeError):  # its loop has ended, and it with it
                loop.call_soon_threadsafe(heard.set)

    async def wait(self, seconds: float) -> None:
        """Return when it rings, and after `seconds` at the latest."""
        heard = asyncio.Event()
        with self._lock:
            self._waiting[heard] = asyncio.get_running_loop()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await heard.wait()
        finally:
            with self._lock:
                del self._waiting[heard]
