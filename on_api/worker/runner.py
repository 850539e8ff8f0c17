"""The worker: a loop for each kind of job, all on one event loop, until it is stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from anyio import to_thread

from on_api.core.errors import OnApiError
from on_api.core.ipfs.formats.multiaddr import Resolver
from on_api.core.services.container import Services
from on_api.core.services.shared.events import number_events
from on_api.core.services.shared.wakeup import Sleeper
from on_api.worker.imports import ImportWorker
from on_api.worker.leftovers import LeftoverRemover
from on_api.worker.pinning import BEAT_SECONDS, PinWorker
from on_api.worker.unpinning import Unpinner
from on_api.worker.visibility import VisibilityWorker

logger = logging.getLogger(__name__)

CHANGES_AT_ONCE = 2
"""Files of which one process changes the visibility at the same time."""
LONGEST_LOOK_SECONDS = 30.0
"""Seconds between looks for work without a wake-up, at most: jobs of a process that died, and work
that may wait. Half a lease if that is less: jobs of a dead process wait for its end anyway.
"""

TROUBLE_SECONDS = 1.0
"""Seconds until the next try while the node or the database can't be reached."""

_Step = Callable[[], Awaitable[bool | None]]
"""Returns whether there may be more to do at once."""
_NextDue = Callable[[], Awaitable[float | None]]
"""Returns the seconds until the next job is due; None if none waits."""


@dataclass(frozen=True, slots=True)
class _Loop:
    """A kind of work, done at each wake-up, after `pause` seconds at the latest, and, given
    `next_due`, when the next job is due."""

    step: _Step
    pause: float
    next_due: _NextDue | None = None
    is_woken: bool = True


class Worker:
    """All background work of one process. Several may run on one PostgreSQL."""

    def __init__(self, services: Services, resolver: Resolver | None = None) -> None:
        settings = services.settings
        self._services = services
        self._poll = settings.worker.poll
        self._unpinner = Unpinner(
            services.database,
            services.reconciler,
            services.metrics,
            grace=timedelta(seconds=settings.gc.grace),
            life=timedelta(seconds=settings.worker.lease_seconds),
        )
        self._leftovers = LeftoverRemover(
            services.database,
            services.node,
            services.reconciler,
            services.names,
            services.metrics,
            timedelta(seconds=settings.worker.lease_seconds),
        )
        self._pins = PinWorker(
            settings,
            services.database,
            services.node,
            services.reconciler,
            self._leftovers,
            services.names,
            services.capacity,
            services.metrics,
            resolver or Resolver(),
        )
        self._visibility = VisibilityWorker(services)
        self._imports = ImportWorker(services)
        self._sleepers: list[Sleeper] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the loops on the running event loop."""
        settings = self._services.settings
        look = min(LONGEST_LOOK_SECONDS, max(self._poll, settings.worker.lease_seconds / 2))
        slow = min(look, max(self._poll, settings.gc.grace / 2))
        pins = self._pins
        loops = [
            _Loop(
                partial(pins.step, fetch=False), look, next_due=partial(pins.next_due, fetch=False)
            ),
            _Loop(
                partial(pins.step, fetch=True), look, next_due=partial(pins.next_due, fetch=True)
            ),
            _Loop(pins.beat, BEAT_SECONDS, is_woken=False),
            _Loop(self._number_events, look, is_woken=False),
            _Loop(self._restore_pins, look),
            _Loop(self._unpinner.step, slow, is_woken=False),
            _Loop(self._unpinner.thin_out, slow, is_woken=False),
            _Loop(self._leftovers.step, slow),
            _Loop(self._imports.step, look, next_due=self._imports.next_due),
            *[_Loop(self._visibility.step, look, next_due=self._visibility.next_due)]
            * CHANGES_AT_ONCE,
        ]
        if settings.gc.interval:
            loops.append(_Loop(self._collect_when_due, look, is_woken=False))
        for loop in loops:
            sleeper = Sleeper(asyncio.get_running_loop())
            if loop.is_woken:
                self._services.wakeup.add(sleeper)
            self._sleepers.append(sleeper)
            self._tasks.append(asyncio.create_task(self._repeat(loop, sleeper)))
        for sleeper in self._sleepers[:2]:
            pins.wake_at_an_end(sleeper)

    async def stop(self) -> None:
        """Stop the loops, and give back work under way."""
        await self._imports.stop()
        await self._pins.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sleeper in self._sleepers:
            self._services.wakeup.remove(sleeper)

    async def _repeat(self, loop: _Loop, sleeper: Sleeper) -> None:
        """Do steps as long as there is work, then sleep. After a sleep that no wake-up ended, first
        ask whether a job is due: one query of an index."""
        has_work = True  # assumed until it is known better
        while True:
            sleeper.begin()
            pause = loop.pause
            try:
                if has_work and await loop.step():
                    continue
                due = None if loop.next_due is None else await loop.next_due()
                if due is not None and due <= 0 and not has_work:
                    has_work = True
                    continue
                if due is not None:
                    pause = min(pause, max(due, self._poll))
            except OnApiError as error:
                logger.warning("the worker is waiting because of an error: %s", error.details)
                pause = min(pause, TROUBLE_SECONDS)
            except Exception:
                logger.exception("a step of the worker failed")
            has_work = await sleeper.sleep(pause) or loop.next_due is None

    async def _number_events(self) -> bool:
        return await to_thread.run_sync(number_events, self._services.database) > 0

    async def _restore_pins(self) -> bool:
        """Look once through all pins if the node may have died while renewing one: it drops a pin
        to renew it."""
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
            logger.warning("%s had lost its pin; repaired: %s", finding.subject, finding.mended)
        return False

    async def _collect_when_due(self) -> bool:
        gc = self._services.settings.gc
        if await self._services.garbage.collect_when_due(
            timedelta(seconds=gc.interval), gc.patience
        ):
            self._services.wakeup.wake()  # for work that could not begin meanwhile
        return False
