"""Watch over the pins that an import's items wait for: one query for all of them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping

from on_api.core.services.transfer.jobs import PinState


class PinWatch:
    """Distributes the states of pins, all read at once, to the tasks that wait for them."""

    def __init__(self) -> None:
        self._waiting: dict[uuid.UUID, asyncio.Future[PinState | None]] = {}

    async def next(self, pin_id: uuid.UUID) -> PinState | None:
        """Wait for the next look, and return the pin's state; None if the pin is gone."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[PinState | None] = loop.create_future()
        self._waiting[pin_id] = future
        return await future

    def wanted(self) -> set[uuid.UUID]:
        """Return the ids of the pins to look at."""
        return set(self._waiting)

    def tell(self, wanted: Iterable[uuid.UUID], states: Mapping[uuid.UUID, PinState]) -> None:
        """Hand out the states found for the pins that were `wanted` before the look."""
        for pin_id in wanted:
            future = self._waiting.pop(pin_id, None)
            if future is not None and not future.done():
                future.set_result(states.get(pin_id))
