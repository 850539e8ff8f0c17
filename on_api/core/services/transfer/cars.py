"""Imports of a CAR: its blocks stream to the node as they arrive, each one verified, and its roots
become pins when all of them are there. Nothing is stored in between."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from anyio import CancelScope, to_thread
from sqlalchemy.orm import Session

from on_api.core.errors import BadCar, Conflict, OnApiError
from on_api.core.ipfs.port import DagStat, IpfsNode
from on_api.core.ipfs.retrieval import take_car
from on_api.core.models import Database, Import, ImportItem
from on_api.core.models.database import database_now, moment_of, new_id, utc_now
from on_api.core.models.imports import DONE, DRAFT, SKIPPED
from on_api.core.providers.base import CAR
from on_api.core.services.accounts.idempotency import (
    AlreadyAnswered,
    Answered,
    IdempotencyClaim,
    IdempotencyService,
    fingerprint,
)
from on_api.core.services.accounts.keys import require_in_force
from on_api.core.services.content import contents
from on_api.core.services.content.capacity import Capacity
from on_api.core.services.content.leases import UPLOAD, Holder, LeaseHandle, LeaseService
from on_api.core.services.content.pin_reconciler import PinReconciler
from on_api.core.services.content.reservations import Announced
from on_api.core.services.content.walking import DamagedError, read_dag
from on_api.core.services.pins.pins import PinRequest, PinService
from on_api.core.services.shared import events, leased_jobs
from on_api.core.services.shared.renewal import renewed
from on_api.core.services.transfer import jobs as import_jobs
from on_api.core.services.transfer.imports import find_import
from on_api.core.services.transfer.lists import ITEM_STEP
from on_api.core.services.uploads.intake import FilePassage, HashedBody, Intake, IntakeLimits

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Root:
    cid: str
    name: str | None
    stat: DagStat


MakeIntake = Callable[[LeaseHandle], Intake]
Render = Callable[[Session, Import], bytes]
"""Renders the answer's body, in the transaction that ends the import."""
_Record = Callable[[Session, Import, bytes], None]
"""Adds to that transaction; the last argument is the CAR's SHA-256."""


class CarImports:
    """Service that receives CARs. A crash leaves an expired lease, and the import as it was: the
    CAR has to be sent again."""

    def __init__(
        self,
        database: Database,
        node: IpfsNode,
        reconciler: PinReconciler,
        leases: LeaseService,
        capacity: Capacity,
        pins: PinService,
        make_intake: MakeIntake,
        idempotency: IdempotencyService,
        limits: IntakeLimits,
        life: float,
    ) -> None:
        self._database = database
        self._node = node
        self._reconciler = reconciler
        self._leases = leases
        self._capacity = capacity
        self._pins = pins
        self._make_intake = make_intake
        self._idempotency = idempotency
        self._limits = limits
        self._life = timedelta(seconds=life)

    async def take_once(
        self,
        holder: Holder,
        import_id: uuid.UUID,
        chunks: AsyncIterator[bytes],
        announced: Announced,
        attempt: IdempotencyClaim | Answered,
        render: Render,
        *,
        name: str | None = None,
    ) -> None:
        """Receive a CAR like `take`, under an Idempotency-Key: import and answer are recorded in
        one transaction.

        Raises `AlreadyAnswered` for a repeat, `Conflict` for another request with the same key,
        both after its whole body was read.
        """
        if isinstance(attempt, Answered):
            sent = await HashedBody(chunks, self._limits).to_its_end()
            raise AlreadyAnswered(attempt.for_repeat(fingerprint(name or "", sent)))
        claim = attempt

        def record(session: Session, row: Import, sent: bytes) -> None:
            answer = Answered(fingerprint(name or "", sent), 200, render(session, row))
            self._idempotency.finish(session, claim, answer)

        async with self._idempotency.kept_alive(claim):
            await self.take(holder, import_id, chunks, announced, name=name, record=record)

    async def take(
        self,
        holder: Holder,
        import_id: uuid.UUID,
        chunks: AsyncIterator[bytes],
        announced: Announced,
        *,
        name: str | None = None,
        record: _Record | None = None,
    ) -> None:
        """Receive the CAR of an import; its roots become the import's items and are pinned.

        `name` is the pin's, if there is one root. Raises `NotFound`; `Conflict` unless the import
        waits for a CAR; `BadCar`; `PayloadTooLarge`, `QuotaExceeded`, `KeyLimitReached`,
        `InsufficientStorage` for too much; `RequestTimeout`; `Unauthorized` when the key has ended
        meanwhile; a `NodeError`.
        """
        token = await self._in_database(lambda s: self._claim(s, holder.user_id, import_id))
        lease: LeaseHandle | None = None
        started_at = utc_now()
        try:
            await self._capacity.require(announced.least)
            lease = await to_thread.run_sync(self._leases.open, UPLOAD, holder, announced)
            async with (
                self._leases.kept_alive(lease),
                renewed(lambda: self._renew(import_id, token), self._life),
            ):
                intake = self._make_intake(lease)
                body = HashedBody(chunks, self._limits)
                with intake.passing(body, FilePassage()) as stream:
                    taken = await take_car(self._node, stream)
                # A CAR of version 2 may have an index behind its blocks.
                sent = await body.to_its_end()
                called = name if len(taken.roots) == 1 else None
                roots = [
                    _Root(cid, called, await self._secure(cid, lease, intake.received))
                    for cid, _ in taken.roots
                ]

                def finish(session: Session, row: Import) -> None:
                    if record is not None:
                        record(session, row, sent)

                await self._record(
                    import_id,
                    holder.key_id,
                    token,
                    lease,
                    roots,
                    started_at,
                    intake.received,
                    finish,
                )
        except BaseException as error:
            with CancelScope(shield=True):
                await self._give_up(import_id, token, lease, error)
            raise

    async def _secure(self, cid: str, lease: LeaseHandle, size: int) -> DagStat:
        """Pin a root under the lease, and read its whole DAG. Raises `BadCar` if it is not
        whole."""
        if await self._node.pin_status(cid) is None:
            # Listed first: it may be pinned though the answer is lost. The bytes received count
            # once, for all roots.
            lease.pinned[cid] = 0 if lease.pinned else size
            await self._node.pin(cid, name=lease.pin_name, fetch=False)
        try:
            return await read_dag(self._node, cid)
        except DamagedError as error:
            raise BadCar(f"{cid} is incomplete: {error}.") from error

    async def _record(
        self,
        import_id: uuid.UUID,
        key_id: uuid.UUID | None,
        token: uuid.UUID,
        lease: LeaseHandle,
        roots: Sequence[_Root],
        started_at: datetime,
        received: int,
        finish: Callable[[Session, Import], None],
    ) -> None:
        secured: dict[str, int] = {}

        def record(session: Session) -> None:
            usage = contents.lock_usage(session, lease.user_id)
            if key_id is not None:
                require_in_force(session, key_id)  # it may have ended while the bytes came
            row = _mine(session, import_id, token)
            row.started_at = started_at
            contents.lock_all(session, [root.cid for root in roots])
            for root in sorted(roots, key=lambda root: root.cid):
                pin = import_jobs.same_pin(session, lease.user_id, root.cid, root.name, None)
                was_here = pin is not None
                if pin is None:
                    request = PinRequest(root.cid, root.name)
                    pin = self._pins.add_pinned(session, usage, request, root.stat, secured)
                session.add(_ended(row, root, pin.id, was_here=was_here))
                row.total += 1
                row.done += 1
                row.skipped += was_here
                row.moved_bytes += 0 if was_here else root.stat.size
                row.known_bytes += root.stat.size
            row.status, row.error = DONE, None
            row.listed_at = row.finished_at = utc_now()
            row.release()
            events.record(session, row.user_id, "import.done", row.id, done=row.done, failed=0)
            self._leases.close(session, lease, usage, received)
            session.flush()
            finish(session, row)

        while True:
            try:
                await self._in_database(record)
            except contents.NotSecuredError as error:
                size = {root.cid: root.stat.size for root in roots}.get(error.cid, 0)
                secured[error.cid] = await self._reconciler.secure_under(lease, error.cid, size)
            else:
                return

    def _claim(self, session: Session, user_id: uuid.UUID, import_id: uuid.UUID) -> uuid.UUID:
        row = find_import(session, user_id, import_id, lock=True)
        if row.kind != CAR or row.status != DRAFT:
            raise Conflict("This import does not expect a CAR.")
        if row.lease_until is not None and row.lease_until > moment_of(session):
            raise Conflict("A CAR is already being uploaded to this import.")
        return leased_jobs.lease(row, self._life)

    def _renew(self, import_id: uuid.UUID, token: uuid.UUID) -> None:
        with self._database.session_scope() as session:
            _mine(session, import_id, token).lease_until = database_now(self._life)

    async def _give_up(
        self,
        import_id: uuid.UUID,
        token: uuid.UUID,
        lease: LeaseHandle | None,
        error: BaseException,
    ) -> None:
        """Free the import for another attempt; its pins are removed through the dead lease."""

        def free(session: Session) -> None:
            row = _mine(session, import_id, token)
            row.release()
            row.error = (
                error.details if isinstance(error, OnApiError) else "The upload was interrupted."
            )

        try:
            if lease is not None:
                held = lease
                await to_thread.run_sync(lambda: self._leases.abandon(held))
            await self._in_database(free)
        except OnApiError:
            logger.warning("could not clean up after the CAR of import %s", import_id)

    async def _in_database(self, work: Callable[[Session], T]) -> T:
        def run() -> T:
            with self._database.session_scope() as session:
                return work(session)

        return await to_thread.run_sync(run)


def _mine(session: Session, import_id: uuid.UUID, token: uuid.UUID) -> Import:
    row = leased_jobs.lock_claimed(session, Import, import_id, token)
    if row is None:
        raise Conflict("This import has been ended in the meantime.")
    return row


def _ended(row: Import, root: _Root, pin_id: uuid.UUID, *, was_here: bool) -> ImportItem:
    return ImportItem(
        id=new_id(),
        import_id=row.id,
        position=row.total,
        created_at=row.created_at + row.total * ITEM_STEP,
        source_cid=root.cid,
        cid=root.cid,
        name=root.name,
        origins=[],
        size=root.stat.size,
        status=SKIPPED if was_here else DONE,
        route=None if was_here else CAR,
        blocks=root.stat.blocks,
        dag_size=root.stat.size,
        verified=True,
        was_here=was_here,
        started_at=row.started_at,
        seconds=0.0 if row.started_at is None else (utc_now() - row.started_at).total_seconds(),
        pin_id=pin_id,
    )
