"""`on-api worker`: background work in a process of its own."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING

from on_api.cli.context import build_services, command_settings

if TYPE_CHECKING:
    from on_api.core.settings import Settings


logger = logging.getLogger(__name__)


def worker() -> None:
    """Run a background worker until you press Ctrl-C: it fetches pins, unpins content and collects
    garbage. With PostgreSQL, any number of workers can run.

    It uses the node that `on-api serve` or `on-api node run` has started, or the external node from
    the settings.
    """
    from on_api.core.logging import configure_logging, log_uncaught_errors
    from on_api.core.services.upkeep.backup.restore_state import require_no_restore

    settings = command_settings(warns=False)
    require_no_restore(settings.home)
    configure_logging(settings.log)
    log_uncaught_errors()
    asyncio.run(_work(settings))


async def _work(settings: Settings) -> None:
    from on_api.worker.housekeeping import Housekeeper
    from on_api.worker.runner import Worker

    services = build_services(settings, is_worker=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    housekeeper = Housekeeper(services.database, services.invalidations, services.settings.traffic)
    running = Worker(services)
    services.invalidations.start()
    services.presence.start()
    housekeeper.start()
    running.start()
    logger.info("the worker is running; press Ctrl-C to stop it")
    try:
        await stop.wait()
    finally:
        await running.stop()
        await asyncio.to_thread(housekeeper.stop)
        await asyncio.to_thread(services.presence.stop)
        await asyncio.to_thread(services.invalidations.stop)
        await services.close()
