"""Renewal of a lease while its work runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from anyio import to_thread

from on_api.core.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)


@asynccontextmanager
async def renewed(renew: Callable[[], object], life: timedelta) -> AsyncIterator[None]:
    """Call `renew` (in a thread) four times in each `life` while the block runs."""

    async def keep_renewing() -> None:
        while True:
            await asyncio.sleep(life.total_seconds() / 4)
            try:
                await to_thread.run_sync(renew)
            except DatabaseUnavailable:
                logger.warning("could not renew a lease; retrying")

    renewing = asyncio.create_task(keep_renewing())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
