"""Moves one item of an import: finds content that is here already, has the node fetch the rest over
IPFS or fetches it from a gateway, reads every block from the node again, and records it.

Each step may be repeated safely: an item under way names its pin, and a fetch from a gateway has a
lease, like an upload.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from sqlalchemy.orm import Session

from on_api.core.backoff import Backoff
from on_api.core.errors import (
    DatabaseUnavailable,
    InsufficientFunds,
    InsufficientStorage,
    NodeError,
    NodeTimeout,
    NodeTruncated,
    NodeUnavailable,
    NotFound,
    OnApiError,
    QuotaExceeded,
    ServiceUnavailable,
)
from on_api.core.ipfs.port import DagStat
from on_api.core.models import ImportItem
from on_api.core.models.pin import FAILED, PINNED_STATUS
from on_api.core.services.container import Services
from on_api.core.services.content import contents, leftovers
from on_api.core.services.content.leases import LeaseHandle
from on_api.core.services.content.quota import Room, charge_of
from on_api.core.services.content.walking import DamagedError, read_dag
from on_api.core.services.pins.pins import PinRequest
from on_api.core.services.transfer import jobs as import_jobs
from on_api.core.services.transfer.imports import AUTO, GATEWAY, IPFS
from on_api.core.services.transfer.jobs import ImportClaim, Item, LostError
from on_api.worker.import_files import ImportedFileFacts, ImportedFiles, NotAuthenticError
from on_api.worker.import_gateway import EMPTY, GatewayFetch, GiveUpError
from on_api.worker.pin_watch import PinWatch

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOCAL = "local"
MADE_HERE = "made here"
ATTEMPTS = 5
"""Attempts at an item that fails for a temporary reason."""
RETRIES = Backoff(first=0.5, longest=30.0)
"""Pauses between attempts in seconds: the first, doubled each time up to the longest."""
DISCOURAGING_MISSES = 3
"""Consecutive items not found over IPFS, after which the gateway is asked first."""
QUOTA = "The storage quota does not allow this item."
FULL = "The IPFS node has no space left for this item."
REMOVED = "The pin was removed in the meantime."
OUR_FAULT = "An internal error occurred on the server; see its log for details."


@dataclass(frozen=True, slots=True)
class _Begun:
    """Next step for an item. `route=None`: its content was here before."""

    route: str | None
    pin_id: uuid.UUID | None = None


class ItemTransfer:
    """Moves items of one import."""

    def __init__(
        self,
        services: Services,
        claim: ImportClaim,
        watch: PinWatch,
        gateway_fetch: GatewayFetch,
        threads: CapacityLimiter,
    ) -> None:
        self._services = services
        self._claim = claim
        self._watch = watch
        self._gateway_fetch = gateway_fetch
        self._threads = threads
        self._limits = services.settings.imports
        self._in_vain = 0
        """Consecutive items not found over IPFS."""
        self.delegates = claim.delegates
        self._files = ImportedFiles(services, claim.user_id)

    async def move(self, item: Item) -> None:
        """Move an item, or record its failure. Raises `LostError` if the import's lease is lost."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._attempt(item)
            except GiveUpError as reason:
                await self._fail(item, str(reason))
            except (InsufficientFunds, QuotaExceeded):
                await self._fail(item, QUOTA)
            except InsufficientStorage:
                await self._fail(item, FULL)
            except OnApiError as error:
                if _passes(error) and attempt < ATTEMPTS and time.monotonic() < self._ends_at(item):
                    await asyncio.sleep(RETRIES.pause(attempt))
                    continue
                if isinstance(error, DatabaseUnavailable):
                    raise
                await self._fail(item, error.details)
            except (LostError, asyncio.CancelledError):
                raise
            except Exception:
                logger.exception("could not import an item of import %s", self._claim.id)
                await self._fail(item, OUR_FAULT)
            return

    async def add_identity(self, text: str) -> None:
        """Add an identity that opens private files of the source."""
        await self._in_thread(lambda: self._files.add_identity(text))

    async def _attempt(self, item: Item) -> None:
        begun = await self._in_database(lambda session: self._begin(session, item))
        if begun.route == IPFS and begun.pin_id is not None:
            try:
                await self._wait_for(item, begun.pin_id)
                self._in_vain = 0
            except GiveUpError as reason:
                if not self._has_gateway:
                    raise
                self._in_vain += 1
                if await self._leave_ipfs(item):
                    try:
                        await self._from_gateway(item)
                    except GiveUpError as second:
                        both = f"Over IPFS: {reason} From the gateway: {second}"
                        raise GiveUpError(both) from None
                    return
        elif begun.route in {GATEWAY, MADE_HERE}:
            await self._from_gateway(item)
            return
        await self._finish(item, None)

    @property
    def _has_gateway(self) -> bool:
        return self._claim.route == AUTO and self._gateway_fetch.has_gateway

    def _ends_at(self, item: Item) -> float:
        return item.began + self._limits.deadline

    def _begin(self, session: Session, item: Item) -> _Begun:
        """Decide the next step, and record it in the item's row."""
        usage, _ = import_jobs.usage_for(session, self._claim)
        row = import_jobs.get_item(session, item.id)
        if row.was_here:
            if import_jobs.is_still_here(session, usage.user_id, row):
                return _Begun(None)
            row.pin_id, row.file_id, row.was_here = None, None, False
        if row.pin_id is not None:
            if import_jobs.pin_states(session, [row.pin_id]):
                return _Begun(row.route, row.pin_id)
            row.pin_id = None  # the user has removed it meanwhile
        if self._is_here(session, row, item):
            return _Begun(None)
        self._require_room(session, item)
        known = item.cid in contents.kept_sizes(session, [item.cid])
        row.route = LOCAL if known else self._route_of(row)
        if item.cid == EMPTY and not known:
            row.route = LOCAL
            return _Begun(MADE_HERE)
        # A pin keeps a file's content only while it is fetched.
        if row.route == IPFS or (row.route == LOCAL and item.file is None):
            request = self._request(item)
            row.pin_id = self._services.pins.add_many(session, usage.user_id, [request])[0].id
        session.flush()
        return _Begun(row.route, row.pin_id)

    def _is_here(self, session: Session, row: ImportItem, item: Item) -> bool:
        user_id = self._claim.user_id
        if item.file is not None:
            file = import_jobs.same_file(session, user_id, item)
            row.file_id = None if file is None else file.id
            row.was_here = file is not None
        else:
            pin = import_jobs.same_pin(session, user_id, item.cid, item.name, item.meta)
            row.pin_id = None if pin is None else pin.id
            row.was_here = pin is not None
        if row.was_here:
            row.route = None
        session.flush()
        return row.was_here

    def _route_of(self, row: ImportItem) -> str:
        if self._claim.route != AUTO:
            return self._claim.route
        # An item that was begun from the gateway goes on there, after a crash too.
        gateway_first = row.route == GATEWAY or self._in_vain >= DISCOURAGING_MISSES
        return GATEWAY if gateway_first and self._has_gateway else IPFS

    def _request(self, item: Item) -> PinRequest:
        meta = None if item.meta is None else {k: str(v) for k, v in item.meta.items()}
        origins = tuple(dict.fromkeys((*item.origins, *self.delegates)))
        return PinRequest(item.source_cid, item.name, origins, meta, item.source_created_at)

    def _require_room(self, session: Session, item: Item) -> None:
        """Refuse content that is known to exceed a limit, before any of it is fetched. Raises
        `GiveUpError`."""
        if item.size is None:
            return
        self._require_size(item.size)
        user_id = self._claim.user_id
        room = Room.of(contents.usage_of(session, user_id))
        if not room.has(item.size) and charge_of(session, user_id, item.cid, item.size) > 0:
            raise GiveUpError(QUOTA)

    def _require_size(self, size: int) -> None:
        most = self._services.settings.files.max_size
        if size > most:
            raise GiveUpError(f"The item has {size} bytes, but this server allows at most {most}.")

    async def _wait_for(self, item: Item, pin_id: uuid.UUID) -> None:
        """Wait until the node has fetched it over IPFS. Raises `GiveUpError` if it won't."""
        loop = asyncio.get_running_loop()
        moved_at, blocks = loop.time(), 0
        while True:
            state = await self._watch.next(pin_id)
            if state is None:
                raise GiveUpError(REMOVED)
            if state.status == PINNED_STATUS:
                return
            if state.status == FAILED:
                raise GiveUpError(state.details or "The item could not be pinned.")
            self._require_size(state.stat.size)
            if state.attempts == 0 or state.stat.blocks > blocks:
                moved_at, blocks = loop.time(), state.stat.blocks
            still = loop.time() - moved_at
            if self._has_gateway and still >= self._limits.patience:
                raise GiveUpError(
                    state.details or f"No block was received for {self._limits.patience:g} seconds."
                )
            if time.monotonic() >= self._ends_at(item):
                tried = f"The time limit of {self._limits.deadline} seconds was exceeded."
                raise GiveUpError(f"{state.details or 'No node provided all of it.'} {tried}")

    async def _leave_ipfs(self, item: Item) -> bool:
        """Remove the pin that was to fetch it. Return False if it has been fetched meanwhile."""

        def leave(session: Session) -> bool:
            usage, _ = import_jobs.usage_for(session, self._claim)
            row = import_jobs.get_item(session, item.id)
            imports = self._services.imports
            if row.pin_id and not imports.drop_pin(session, usage.user_id, row.pin_id):
                return False
            row.pin_id, row.route = None, GATEWAY
            session.flush()
            return True

        return await self._in_database(leave)

    async def _from_gateway(self, item: Item) -> None:
        """Fetch it from the gateway under a lease, and record it."""
        async with self._gateway_fetch.brought(item, self._ends_at(item)) as lease:
            await self._finish(item, lease)

    async def _finish(self, item: Item, lease: LeaseHandle | None) -> None:
        """Read all of it from the node, and record it. Raises `GiveUpError` if it is not
        complete."""
        try:
            stat = await read_dag(self._services.node, item.cid)
            self._require_size(stat.size)
            facts = None if item.file is None else await self._files.inspect(item, stat)
        except DamagedError as error:
            raise GiveUpError(f"The item is incomplete on the node: {error}.") from error
        except NotAuthenticError as error:
            raise GiveUpError(str(error)) from error
        secured: dict[str, int] = {}
        while True:
            try:
                outcome = await self._in_database(
                    lambda session: self._record(session, item, stat, facts, lease, secured)
                )
            except contents.NotSecuredError as error:
                reconciler = self._services.reconciler
                secured[error.cid] = await (
                    reconciler.secure(error.cid, item.id)
                    if lease is None
                    else reconciler.secure_under(lease, error.cid, stat.size)
                )
            else:
                self._services.metrics.import_items.labels(outcome).inc()
                return

    def _record(
        self,
        session: Session,
        item: Item,
        stat: DagStat,
        facts: ImportedFileFacts | None,
        lease: LeaseHandle | None,
        secured: Mapping[str, int],
    ) -> str:
        """Record that the item is here. Return its status."""
        usage, _ = import_jobs.usage_for(session, self._claim)
        row = import_jobs.get_item(session, item.id)
        if facts is not None:
            self._files.open_others(session, item, facts)
        if row.was_here:
            if not import_jobs.is_still_here(session, usage.user_id, row):
                raise GiveUpError(REMOVED)
        elif facts is not None:
            row.file_id = self._files.add(session, usage, item, facts, stat, secured)
            if row.pin_id is not None:
                self._services.pins.remove(session, usage.user_id, row.pin_id)
                row.pin_id = None
        elif row.pin_id is None:
            pin = self._services.pins.add_pinned(session, usage, self._request(item), stat, secured)
            row.pin_id = pin.id
        elif not import_jobs.pin_states(session, [row.pin_id]):
            raise GiveUpError(REMOVED)
        if lease is not None:
            self._services.leases.close(session, lease, usage, 0)
        if facts is not None and facts.problem is not None:
            import_jobs.fail_item(session, self._claim, row, facts.problem)
        else:
            note = None if facts is None else facts.note
            import_jobs.end_item(session, self._claim, row, stat, note)
        return row.status

    async def _fail(self, item: Item, reason: str) -> None:
        """Record an item's failure, and remove the pin that was to fetch it."""

        def fail(session: Session) -> None:
            usage, _ = import_jobs.usage_for(session, self._claim)
            row = import_jobs.get_item(session, item.id)
            if row.pin_id is not None and not row.was_here:
                with suppress(NotFound):
                    self._services.pins.remove(session, usage.user_id, row.pin_id)
                row.pin_id = None
            if row.was_here and not import_jobs.is_still_here(session, usage.user_id, row):
                row.pin_id, row.file_id, row.was_here = None, None, False
            # It may have been pinned for this item while its content was being removed.
            leftovers.leave(session, item.id, [item.cid])
            import_jobs.fail_item(session, self._claim, row, reason)

        await self._in_database(fail)
        self._services.metrics.import_items.labels(FAILED).inc()

    async def _in_database(self, work: Callable[[Session], T]) -> T:
        def run() -> T:
            with self._services.database.session_scope() as session:
                return work(session)

        return await self._in_thread(run)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await to_thread.run_sync(work, limiter=self._threads)


def _passes(error: OnApiError) -> bool:
    passing = NodeUnavailable | NodeTimeout | NodeTruncated | ServiceUnavailable
    return isinstance(error, passing) or type(error) is NodeError
