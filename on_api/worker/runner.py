"""The worker: every kind of job in loops of its own on one event loop, until it is stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial

from anyio import to_thread

from on_api.core.errors import OnApiError
from on_api.core.ipfs.formats.multiaddr import Resolver
from on_api.core.services.container import Services
from on_api.core.services.shared.events import number_events
from on_api.worker.imports import ImportWorker
from on_api.worker.leftovers import LeftoverRemover
from on_api.worker.pinning import BEAT_SECONDS, PinWorker
from on_api.worker.unpinning import Unpinner
from on_api.worker.visibility import VisibilityWorker

logger = logging.getLogger(__name__)

CHANGES_AT_ONCE = 2
"""Files whose visibility one process changes at the same time."""
SLOW_LOOK_SECONDS = 5.0
"""Between looks for what may wait: unpinning, garbage collection."""

_Step = Callable[[], Awaitable[bool | None]]
"""Returns whether there may be more to do at once."""
_Wait = Callable[[float], Awaitable[None]]


class Worker:
    """One process's worker. Several may run on one PostgreSQL."""

    def __init__(self, services: Services, resolver: Resolver | None = None) -> None:
        settings = services.settings
        self._services = services
        self._poll = settings.worker.poll
        self._unpinner = Unpinner(
            services.database,
            services.keeper,
            services.metrics,
            grace=timedelta(seconds=settings.gc.grace),
            life=timedelta(seconds=settings.worker.lease_seconds),
        )
        self._leftovers = LeftoverRemover(
            services.database,
            services.node,
            services.keeper,
            services.names,
            services.metrics,
            timedelta(seconds=settings.worker.lease_seconds),
        )
        self._pins = PinWorker(
            settings,
            services.database,
            services.node,
            services.keeper,
            self._leftovers,
            services.names,
            services.capacity,
            services.metrics,
            resolver or Resolver(),
            services.bell,
        )
        self._visibility = VisibilityWorker(services)
        self._imports = ImportWorker(services)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin, on the running event loop."""
        slow = min(SLOW_LOOK_SECONDS, max(self._poll, self._services.settings.gc.grace / 2))
        bell, pins = self._services.bell.wait, self._pins
        loops: list[tuple[_Step, float, _Wait]] = [
            *(
                (partial(pins.step, fetch=fetch), self._poll, partial(pins.wait, fetch=fetch))
                for fetch in (False, True)
            ),
            (pins.beat, BEAT_SECONDS, asyncio.sleep),
            (self._number_events, self._poll, bell),
            (self._restore_pins, SLOW_LOOK_SECONDS, bell),
            (self._unpinner.step, slow, asyncio.sleep),
            (self._unpinner.thin_out, slow, asyncio.sleep),
            (self._leftovers.step, slow, bell),
            (self._imports.step, self._poll, bell),
            *[(self._visibility.step, self._poll, bell)] * CHANGES_AT_ONCE,
        ]
        if self._services.settings.gc.interval:
            loops.append((self._collect_when_due, SLOW_LOOK_SECONDS, asyncio.sleep))
        self._tasks = [asyncio.create_task(self._repeat(*loop)) for loop in loops]

    async def stop(self) -> None:
        """End; what was being worked on is given back."""
        await self._imports.stop()
        await self._pins.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, step: _Step, pause: float, wait: _Wait) -> None:
        """Do steps as long as there is work, then wait: up to `pause` seconds."""
        while True:
            worked: bool | None = False
            try:
                worked = await step()
            except OnApiError as error:
                logger.warning("the worker waits: %s", error.details)
            except Exception:
                logger.exception("a step of the worker failed")
            if not worked:
                await wait(pause)

    async def _number_events(self) -> bool:
        return await to_thread.run_sync(number_events, self._services.database) > 0

    async def _restore_pins(self) -> bool:
        """Look once through all pins after the node may have died: it drops one to renew it."""
        services = self._services
        if not services.pins_doubtful.is_set():
            return False
        services.pins_doubtful.clear()
        try:
            report = await services.fsck.restore_pins()
        except OnApiError:
            services.pins_doubtful.set()
            raise
        for finding in report.findings:
            logger.warning("%s had lost its pin; mended: %s", finding.subject, finding.mended)
        return False

    async def _collect_when_due(self) -> bool:
        gc = self._services.settings.gc
        await self._services.garbage.collect_when_due(timedelta(seconds=gc.interval), gc.patience)
        return False
