"""uvicorn's server with one tick a second instead of ten: an idle process sleeps."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import FrameType

import uvicorn

TICK_SECONDS = 1.0
"""Seconds between two updates of the answers' `Date`."""


class QuietServer(uvicorn.Server):
    """Server that ends as soon as a signal comes, because the signal wakes its loop."""

    _woken: asyncio.Event | None = None
    _loop: asyncio.AbstractEventLoop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Implement `uvicorn.Server`: also wake the main loop."""
        super().handle_exit(sig, frame)
        if self._woken is not None:
            self._loop.call_soon_threadsafe(self._woken.set)

    async def main_loop(self) -> None:
        """Implement `uvicorn.Server`."""
        self._woken, self._loop = asyncio.Event(), asyncio.get_running_loop()
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._woken.wait()
