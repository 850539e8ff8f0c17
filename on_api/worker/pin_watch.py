"""Looking after the pins that items of an import wait for: one question for all of them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping

from on_api.core.services.transfer.jobs import PinState


class PinWatch:
    """Hands out how far pins are, from one look at all of them."""

    def __init__(self) -> None:
        self._waiting: dict[uuid.UUID, asyncio.Future[PinState | None]] = {}

    async def next(self, pin_id: uuid.UUID) -> PinState | None:
        """The pin at the next look; None when it is gone."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[PinState | None] = loop.create_future()
        self._waiting[pin_id] = future
        return await future

    def wanted(self) -> set[uuid.UUID]:
        """Which pins are to be looked at."""
        return set(self._waiting)

    def tell(self, wanted: Iterable[uuid.UUID], states: Mapping[uuid.UUID, PinState]) -> None:
        """What was seen of those that were `wanted` before the look."""
        for pin_id in wanted:
            future = self._waiting.pop(pin_id, None)
            if future is not None and not future.done():
                future.set_result(states.get(pin_id))
