"""uvicorn's server, which looks at the clock once a second instead of ten times: an idle process
sleeps."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import FrameType

import uvicorn

TICK_SECONDS = 1.0
"""How often answers get another `Date`."""


class QuietServer(uvicorn.Server):
    """Ends as soon as a signal comes, without having to look for it."""

    _woken: asyncio.Event | None = None
    _loop: asyncio.AbstractEventLoop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See `uvicorn.Server`."""
        super().handle_exit(sig, frame)
        if self._woken is not None:
            self._loop.call_soon_threadsafe(self._woken.set)

    async def main_loop(self) -> None:
        """See `uvicorn.Server`."""
        self._woken, self._loop = asyncio.Event(), asyncio.get_running_loop()
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._woken.wait()
