"""Imports as their users see them: requested, started, paused, cancelled, listed. They are carried
out in `jobs.py` and the worker."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.orm import Session

from on_api.core.crypto.sealing import Sealed
from on_api.core.crypto.secrets import Keyring, Purpose, UnknownSecretError
from on_api.core.errors import BadRequest, Conflict, Forbidden, NotFound, SecretUnavailable
from on_api.core.models import File, Import, ImportItem, Pin
from on_api.core.models.database import database_now, new_id, utc_now
from on_api.core.models.file import FOR_RECIPIENTS, PRIVATE
from on_api.core.models.imports import (
    CANCELLED,
    DONE,
    DRAFT,
    FAILED,
    MOVING,
    PAUSED,
    RUNNING,
    SKIPPED,
    WAITING,
)
from on_api.core.models.pin import PINNED_STATUS
from on_api.core.providers.base import CAR, KUBO, ON_API, PINATA, SourceSpec
from on_api.core.services.accounts.access import owned
from on_api.core.services.accounts.master_secret import RowSealer
from on_api.core.services.content import contents
from on_api.core.services.content.quota import Room
from on_api.core.services.pins.pins import PinService
from on_api.core.services.shared.paging import Listing
from on_api.core.services.transfer.jobs import let_go

MICROSECOND = timedelta(microseconds=1)
MOST_IMPORTS = 1000
"""Most imports of one user; ended ones stay, for their reports, until they are deleted."""
MOST_UNENDED = 100
"""Most imports of one user that have not ended."""
UNENDED = (DRAFT, RUNNING, PAUSED)
ENDED = (DONE, FAILED, CANCELLED)
AUTO, IPFS, GATEWAY = "auto", "ipfs", "gateway"
PINATA_GATEWAY = "https://gateway.pinata.cloud"


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """Source of a new import, and the way by which its bytes are to come."""

    source: SourceSpec
    route: str = AUTO
    gateway_url: str | None = None
    start: bool = False


@dataclass(frozen=True, slots=True)
class ImportState:
    """State of an import that is not in its row.

    `moving_bytes`: bytes so far of items under way. `room`: bytes that the user's quota leaves;
    None: no limit.
    """

    moving_bytes: int
    room: int | None


class ImportService:
    """Service that takes imports and changes their state. `ring` is called after a commit that
    leaves work for the worker."""

    def __init__(
        self,
        keyring: Keyring,
        pins: PinService,
        ring: Callable[[Session], None],
        *,
        allow_private: bool,
    ) -> None:
        self._sealer = RowSealer(keyring, Purpose.IMPORTS)
        self._pins = pins
        self._ring = ring
        self._allow_private = allow_private

    def create(
        self,
        session: Session,
        user_id: uuid.UUID,
        request: ImportRequest,
        *,
        key_id: uuid.UUID | None = None,
        is_admin: bool = False,
    ) -> Import:
        """Create an import: its source's list is read as a job, and its items are moved once it is
        started.

        Raises `Forbidden` for a source that only administrators may name, `AddressRefused` for a
        URL that must not be called, `BadRequest` for a route without its gateway, `Conflict` for
        too many, `SecretUnavailable` without a master secret.
        """
        from on_api.core.net.outbound import check_url  # brings httpx, which few servers need

        spec = request.source
        if spec.kind == KUBO and not is_admin:
            raise Forbidden("Only administrators may import from the RPC API of a Kubo node.")
        gateway = request.gateway_url or _known_gateway(spec)
        for url in (spec.endpoint, gateway):
            if url is not None:
                check_url(url, allow_private=self._allow_private)
        if request.route == GATEWAY and gateway is None:
            raise BadRequest("gateway_url: required for route gateway.")
        usage = contents.lock_usage(session, user_id)
        mine = select(func.count()).where(Import.user_id == user_id)
        if (session.scalar(mine) or 0) >= MOST_IMPORTS:
            raise Conflict(
                f"You have reached the maximum of {MOST_IMPORTS} imports; delete some of them"
                " first."
            )
        unended = select(func.count()).where(Import.user_id == user_id, Import.status.in_(UNENDED))
        if (session.scalar(unended) or 0) >= MOST_UNENDED:
            raise Conflict(
                f"{MOST_UNENDED} of your imports have not ended yet, which is the maximum; cancel"
                " or delete some of them first."
            )
        # A CAR import starts when the CAR is sent.
        starts = request.start and not _waits_for_car(spec)
        row = Import(
            id=new_id(),
            user_id=user_id,
            key_id=key_id,
            kind=spec.kind,
            source=shown_source(spec),
            route=request.route,
            gateway_url=gateway,
            status=RUNNING if starts else DRAFT,
            created_at=contents.next_moment(usage, step=MICROSECOND),
            started_at=utc_now() if starts else None,
        )
        if not _waits_for_car(spec):
            sealed = self._sealer.seal(session, spec.to_json().encode(), row.id.bytes)
            row.secrets, row.secret_version = sealed.data, sealed.version
            row.due_at = database_now()
            self._ring(session)
        session.add(row)
        session.flush()
        return row

    def open_spec(self, import_id: uuid.UUID, version: int, sealed: bytes) -> SourceSpec:
        """Unseal the source of an import, with its credentials. Raises `SecretUnavailable`."""
        try:
            text = self._sealer.open(Sealed(version, sealed), import_id.bytes).decode()
        except (UnknownSecretError, ValueError):
            raise SecretUnavailable from None
        return SourceSpec.from_json(text)

    def start(self, session: Session, user_id: uuid.UUID, import_id: uuid.UUID) -> Import:
        """Start an import, resume it after a pause, or retry the failed items of an ended one.

        Raises `NotFound`, or `Conflict` when the CAR is still to be sent, or an ended import's list
        was not read to its end: its credentials are forgotten.
        """
        row = find_import(session, user_id, import_id, lock=True)
        if row.status == RUNNING:
            return row
        if row.kind == CAR and row.listed_at is None and row.secrets is None:
            raise Conflict("Upload the CAR first: PUT …/car.")
        if row.status in ENDED:
            if row.listed_at is None:
                raise Conflict(
                    "The source's list was not read completely, and the credentials for the"
                    " source have been deleted: create a new import. Content that is already"
                    " stored will not be transferred again."
                )
            self._begin_anew(session, row)
        row.status, row.error, row.attempts = RUNNING, None, 0
        row.started_at, row.finished_at, row.due_at = utc_now(), None, database_now()
        session.flush()
        self._ring(session)
        return row

    def pause(self, session: Session, user_id: uuid.UUID, import_id: uuid.UUID) -> Import:
        """Pause an import; items under way start anew later. Raises `NotFound`, or `Conflict`
        unless it is running."""
        contents.lock_usage(session, user_id)
        row = find_import(session, user_id, import_id, lock=True)
        if row.status == PAUSED:
            return row
        if row.status != RUNNING:
            raise Conflict(f"This import is {row.status}: only a running import can be paused.")
        row.status = PAUSED
        self._stop(session, row)
        return row

    def cancel(self, session: Session, user_id: uuid.UUID, import_id: uuid.UUID) -> Import:
        """Cancel an import; what was moved stays. Does nothing to one that has ended. Raises
        `NotFound`."""
        contents.lock_usage(session, user_id)
        row = find_import(session, user_id, import_id, lock=True)
        if row.status not in ENDED:
            row.status, row.finished_at = CANCELLED, utc_now()
            row.secrets = row.secret_version = None
            self._stop(session, row)
        return row

    def delete(self, session: Session, user_id: uuid.UUID, import_id: uuid.UUID) -> None:
        """Delete an import that has ended, or was not started; what it moved stays.

        Raises `NotFound`, or `Conflict` while it is running or paused.
        """
        row = find_import(session, user_id, import_id, lock=True)
        if row.status in {RUNNING, PAUSED}:
            raise Conflict("Cancel the import first.")
        session.execute(delete(ImportItem).where(ImportItem.import_id == row.id))
        session.delete(row)
        session.flush()

    def _begin_anew(self, session: Session, row: Import) -> None:
        """Reset failed items, and private files that can't be opened here, to be tried again; count
        the rest."""
        closed = (
            select(File.id)
            .where(
                File.id == ImportItem.file_id,
                File.visibility == PRIVATE,
                File.sealed_for == FOR_RECIPIENTS,
            )
            .exists()
        )
        session.execute(
            update(ImportItem)
            .where(
                ImportItem.import_id == row.id,
                ImportItem.cid.is_not(None),
                (ImportItem.status == FAILED) | (ImportItem.status.in_((DONE, SKIPPED)) & closed),
            )
            .values(
                status=WAITING,
                reason=None,
                route=None,
                blocks=None,
                dag_size=None,
                verified=False,
                pin_id=None,
                file_id=None,
                was_here=False,
                seconds=None,
            )
        )
        moved = func.coalesce(func.sum(ImportItem.dag_size), 0)
        statement = (
            select(ImportItem.status, func.count(), moved)
            .where(ImportItem.import_id == row.id)
            .group_by(ImportItem.status)
        )
        counts = {status: (count, size) for status, count, size in session.execute(statement)}
        row.failed = counts.get(FAILED, (0, 0))[0]
        row.skipped = counts.get(SKIPPED, (0, 0))[0]
        row.done = counts.get(DONE, (0, 0))[0] + row.skipped
        row.moved_bytes = int(counts.get(DONE, (0, 0))[1] or 0)

    def _stop(self, session: Session, row: Import) -> None:
        """Release the import from its worker, and reset the items under way: a few at most."""
        let_go(row)
        moving = session.scalars(
            select(ImportItem).where(ImportItem.import_id == row.id, ImportItem.status == MOVING)
        ).all()
        for item in moving:
            item.status, item.dag_size, item.blocks = WAITING, None, None
            if item.pin_id is not None and self.drop_pin(session, row.user_id, item.pin_id):
                item.pin_id = None
        session.flush()

    def drop_pin(self, session: Session, user_id: uuid.UUID, pin_id: uuid.UUID) -> bool:
        """Remove a pin that is unfinished or failed. Returns whether it is gone: a pinned one
        stays. The user's usage is locked."""
        status = session.scalar(select(Pin.status).where(Pin.id == pin_id))
        if status == PINNED_STATUS:
            return False
        with suppress(NotFound):
            self._pins.remove(session, user_id, pin_id)
        return True


def find_import(
    session: Session, user_id: uuid.UUID, import_id: uuid.UUID, *, lock: bool = False
) -> Import:
    """Return one import of a user. Raises `NotFound` for any other."""
    statement = _mine(user_id).where(Import.id == import_id)
    row = session.scalar(statement.with_for_update() if lock else statement)
    if row is None:
        raise NotFound
    return row


def find_any_import(session: Session, import_id: uuid.UUID) -> Import:
    """Return any user's import, for the operator. Raises `NotFound`."""
    row = session.get(Import, import_id)
    if row is None:
        raise NotFound(f"There is no import {import_id}.")
    return row


def imports_of(user_id: uuid.UUID) -> Listing[Import]:
    """List a user's imports."""
    return Listing(_mine(user_id), Import.created_at, Import.id)


def items_of(
    session: Session, user_id: uuid.UUID, import_id: uuid.UUID, status: str | None
) -> Listing[ImportItem]:
    """List the items of a user's import, all or those of one status. Raises `NotFound`."""
    row = find_import(session, user_id, import_id)
    statement = select(ImportItem).where(ImportItem.import_id == row.id)
    if status is not None:
        statement = statement.where(ImportItem.status == status)
    known = row.total if status is None else None
    return Listing(statement, ImportItem.created_at, ImportItem.id, known)


def states_of(
    session: Session, user_id: uuid.UUID, rows: Sequence[Import]
) -> Mapping[uuid.UUID, ImportState]:
    """Return the present state of imports of one user, by id."""
    running = [row.id for row in rows if row.status == RUNNING]
    # A few items at most. While a pin is unfinished its row says how many bytes have come.
    so_far = func.coalesce(ImportItem.dag_size, Pin.dag_size, 0)
    sums = (
        select(ImportItem.import_id, func.sum(so_far))
        .outerjoin(Pin, Pin.id == ImportItem.pin_id)
        .where(
            ImportItem.import_id.in_(running),
            ImportItem.status == MOVING,
            ImportItem.was_here.is_(False),
        )
        .group_by(ImportItem.import_id)
    )
    moving = {key: int(size or 0) for key, size in session.execute(sums)} if running else {}
    room = Room.of(contents.usage_of(session, user_id)).left
    return {row.id: ImportState(moving.get(row.id, 0), room) for row in rows}


def standing_of(session: Session, row: Import) -> ImportState:
    """Return the present state of one import."""
    return states_of(session, row.user_id, [row])[row.id]


def shown_source(spec: SourceSpec) -> dict[str, str]:
    """Return the properties of a source that may be stored and shown: no credentials."""
    shown = {"kind": spec.kind, "endpoint": spec.endpoint, "username": spec.username}
    return {name: value for name, value in shown.items() if value}


def _waits_for_car(spec: SourceSpec) -> bool:
    return spec.kind == CAR and not spec.path and not spec.roots


def _known_gateway(spec: SourceSpec) -> str | None:
    """Return the gateway that serves the source's content unless told otherwise: an on-api is
    one."""
    return {PINATA: PINATA_GATEWAY, ON_API: spec.endpoint}.get(spec.kind)


def _mine(user_id: uuid.UUID) -> Select[Import]:
    return owned(select(Import), Import.user_id, user_id)
