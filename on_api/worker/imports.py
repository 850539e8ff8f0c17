"""Imports as jobs: reads the source's list into items, then moves them, a bounded number at once.

After a crash the lease expires: the next attempt reads on after the last page, and takes up the
items that were under way.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from anyio import CancelScope, CapacityLimiter, to_thread
from sqlalchemy.orm import Session

from on_api.core.backoff import Backoff
from on_api.core.errors import (
    AddressRefused,
    BadRequest,
    DatabaseUnavailable,
    OnApiError,
    SecretUnavailable,
)
from on_api.core.ipfs.retrieval import GatewayFetcher
from on_api.core.net.errors import SourceUnavailable
from on_api.core.services.container import Services
from on_api.core.services.transfer import jobs as import_jobs
from on_api.core.services.transfer import lists as import_lists
from on_api.core.services.transfer.jobs import ImportClaim, Item, LostError, PinState
from on_api.worker.import_gateway import GatewayFetch
from on_api.worker.import_items import ItemTransfer
from on_api.worker.pin_watch import PinWatch

if TYPE_CHECKING:
    from on_api.core.net.outbound import Outbound

logger = logging.getLogger(__name__)

T = TypeVar("T")

THREADS = 8
"""Threads for the database, in each process."""
BEAT_SECONDS = 1.0
SLICE_SECONDS = 60.0
"""Seconds after which an import gives up its slot, if others wait."""
FIRST_PAUSE_SECONDS = 2.0
"""Seconds until the source's list is read on after the first temporary error."""
LISTING_ATTEMPTS = 3
"""Attempts at one page, before the import fails."""


class ImportWorker:
    """Worker for imports, one in each process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        # Threads of its own: requests must not wait for these.
        self._threads = CapacityLimiter(THREADS)
        self._life = timedelta(seconds=services.settings.worker.lease_seconds)
        self._runs: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    @cached_property
    def outbound(self) -> Outbound:
        """Client for other people's servers. Made for the first import: httpx and what it brings
        are a tenth of an idle server's memory."""
        from on_api.core.net.outbound import Outbound

        return Outbound(self._services.settings.imports)

    async def step(self) -> bool:
        """Begin one import that is due, if a slot is free. Return whether there was one."""
        slots = self._services.settings.imports.at_once
        if self._is_stopping or len(self._runs) >= slots:
            return False
        if not await self._in_database(import_jobs.any_due, write=False):
            return False
        claim = await self._in_database(lambda session: import_jobs.claim(session, self._life))
        if claim is None:
            return False
        try:
            run = _Run(self, claim, self._gateway(claim.gateway_url))
        except AddressRefused as error:  # the operator has changed what is allowed
            details = error.details
            await self._in_database(lambda session: import_jobs.give_up(session, claim, details))
            return True
        task = asyncio.create_task(run.run())
        self._runs.add(task)
        task.add_done_callback(self._end)
        return True

    async def next_due(self) -> float | None:
        """Return the seconds until the next import is due; None if none waits."""
        return await self._in_database(import_jobs.next_due, write=False)

    async def stop(self) -> None:
        """Claim nothing more, and give back all work under way."""
        self._is_stopping = True
        for task in self._runs:
            task.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)
        if "outbound" in vars(self):
            await self.outbound.close()

    def _gateway(self, url: str | None) -> GatewayFetcher | None:
        if url is None:
            return None
        return GatewayFetcher(self._services.node, self.outbound, url)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._runs.discard(task)
        self._services.wakeup.wake()

    async def _in_database(self, work: Callable[[Session], T], *, write: bool = True) -> T:
        def run() -> T:
            with self._services.database.session_scope(write=write) as session:
                return work(session)

        return await to_thread.run_sync(run, limiter=self._threads)


class _Run:
    """One import, for as long as this process has its lease."""

    def __init__(
        self, worker: ImportWorker, claim: ImportClaim, gateway: GatewayFetcher | None
    ) -> None:
        self._services = worker._services
        self._outbound = worker.outbound
        self._life = worker._life
        self._in_database = worker._in_database
        self._claim = claim
        self._watch = PinWatch()
        self._gateway_fetch = GatewayFetch(self._services, claim.user_id, gateway, worker._threads)
        self._transfer = ItemTransfer(
            self._services, claim, self._watch, self._gateway_fetch, worker._threads
        )

    async def run(self) -> None:
        """Carry out the import until its end, or the loss of its lease."""
        work = asyncio.create_task(self._carry_out())
        beat = asyncio.create_task(self._beat())
        try:
            await asyncio.wait({work, beat}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_lost = beat.done() and not work.done()
            beat.cancel()
            work.cancel()  # does nothing if it has ended
            with CancelScope(shield=True):
                await asyncio.gather(beat, work, return_exceptions=True)
                if not is_lost:
                    await self._settle(work)
        if is_lost and (error := beat.exception()) is not None:
            logger.error(
                "import %s will be retried when its lease expires", self._claim.id, exc_info=error
            )
        elif is_lost:
            logger.info("import %s was ended by another process", self._claim.id)

    async def _settle(self, work: asyncio.Task[None]) -> None:
        """Record how the work ended, unless that is done."""
        try:
            if work.cancelled():
                await self._put_back(None, pause=0, counted=False)
            elif (error := work.exception()) is not None:
                await self._after(error)
        except LostError:
            logger.info("import %s was ended by another process", self._claim.id)
        except OnApiError as failure:
            # The database, most likely: the lease expires and another attempt begins.
            logger.warning(
                "import %s will be retried when its lease expires: %s",
                self._claim.id,
                failure.details,
            )

    async def _after(self, error: BaseException) -> None:
        if isinstance(error, LostError):
            raise error
        if not isinstance(error, OnApiError):
            logger.error("import %s failed", self._claim.id, exc_info=error)
            await self._give_up(
                "An internal error occurred on the server; see its log for details."
            )
            return
        longest = self._services.settings.imports.longest_pause
        if isinstance(error, DatabaseUnavailable | SecretUnavailable):
            # For the operator to mend, however long that takes.
            await self._put_back(error.details, pause=longest, counted=False)
        elif isinstance(error, SourceUnavailable) and self._claim.attempts < LISTING_ATTEMPTS:
            pause = Backoff(FIRST_PAUSE_SECONDS, longest).jittered(self._claim.attempts)
            await self._put_back(error.details, pause=pause)
        else:
            await self._give_up(_sentence(error))

    async def _carry_out(self) -> None:
        if not self._claim.listed and not await self._list():
            return
        await self._move_all()

    async def _list(self) -> bool:
        """Read the source's list. Return whether its items are to be moved at once."""
        claim, most = self._claim, self._services.settings.imports.max_items
        sealed = await self._in_database(lambda s: import_lists.secrets_of(s, claim))
        if sealed is None:
            raise SecretUnavailable
        from on_api.core.providers.opening import open_source

        spec = self._services.imports.open_spec(claim.id, *sealed)
        source = open_source(spec, self._outbound)
        try:
            if claim.resume is None:
                delegates = await source.delegates()
                for identity in await source.identities():
                    await self._transfer.add_identity(identity)
                await self._in_database(lambda s: import_lists.begin_listing(s, claim, delegates))
                self._transfer.delegates = tuple(delegates)
            async for page in source.pages(claim.resume):
                await self._in_database(
                    lambda s, page=page: import_lists.add_page(  # type: ignore[misc]
                        s, claim, page.items, page.resume, most
                    )
                )
        finally:
            with CancelScope(shield=True):
                await source.close()
        return await self._in_database(lambda s: import_lists.end_listing(s, claim))

    async def _move_all(self) -> None:
        claim, slots = self._claim, self._services.settings.imports.concurrency
        ends_at = asyncio.get_running_loop().time() + SLICE_SECONDS
        moving: dict[asyncio.Task[None], Item] = {}
        is_more = True
        try:
            while True:
                free = slots - len(moving)
                if is_more and free >= max(1, slots // 2):
                    items = await self._take(free, {item.id: item.cid for item in moving.values()})
                    is_more = len(items) == free
                    moving |= {
                        asyncio.create_task(self._transfer.move(item)): item for item in items
                    }
                if not moving:
                    if await self._in_database(lambda s: import_jobs.finish(s, claim)):
                        return
                    is_more = True  # a CID that was under way, or retried by the user meanwhile
                    continue
                done, _ = await asyncio.wait(moving, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del moving[task]
                    task.result()
                if asyncio.get_running_loop().time() >= ends_at and await self._others_wait():
                    is_more = False
                    if not moving:
                        await self._put_back(None, pause=0, counted=False)
                        return
        finally:
            for task in moving:
                task.cancel()
            with CancelScope(shield=True):
                await asyncio.gather(*moving, return_exceptions=True)

    async def _take(self, free: int, under_way: dict[uuid.UUID, str]) -> list[Item]:
        claim = self._claim
        return list(await self._in_database(lambda s: import_jobs.take(s, claim, free, under_way)))

    async def _others_wait(self) -> bool:
        return await self._in_database(import_jobs.any_due, write=False)

    async def _beat(self) -> None:
        """Renew the lease, record progress, look at pins. Return when the lease is lost."""
        loop = asyncio.get_running_loop()
        pause = min(BEAT_SECONDS, self._services.settings.worker.poll)
        renewed_at = loop.time()
        while True:
            await asyncio.sleep(pause)
            try:
                if wanted := self._watch.wanted():
                    self._watch.tell(wanted, await self._pin_states(wanted))
                if loop.time() - renewed_at >= min(BEAT_SECONDS, self._life.total_seconds() / 4):
                    renewed_at = loop.time()
                    if not await self._renew():
                        return
            except DatabaseUnavailable:
                logger.warning("could not update import %s; retrying", self._claim.id)

    async def _pin_states(self, wanted: set[uuid.UUID]) -> dict[uuid.UUID, PinState]:
        return dict(
            await self._in_database(lambda s: import_jobs.pin_states(s, wanted), write=False)
        )

    async def _renew(self) -> bool:
        claim, life, seen = self._claim, self._life, dict(self._gateway_fetch.seen)
        return await self._in_database(lambda s: import_jobs.renew(s, claim, life, seen))

    async def _give_up(self, details: str) -> None:
        await self._in_database(lambda s: import_jobs.give_up(s, self._claim, details))

    async def _put_back(self, details: str | None, *, pause: float, counted: bool = True) -> None:
        due_in = timedelta(seconds=pause)
        await self._in_database(
            lambda s: import_jobs.put_back(s, self._claim, details, due_in=due_in, counted=counted)
        )


def _sentence(error: OnApiError) -> str:
    if isinstance(error, BadRequest | AddressRefused):
        return error.details
    return f"The source's list could not be read: {error.details}"
