"""Imports as jobs: claimed under a lease, their items listed, moved, recorded, and ended. The
database half of the worker.

Every change asks for the lease's token: a worker that has lost it changes nothing more. A user's
usage is locked before the import, as before everything else.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session

from on_api.core.errors import Unauthorized
from on_api.core.ipfs.port import DagStat
from on_api.core.models import File, Import, ImportItem, Pin, User, UserUsage
from on_api.core.models.database import utc_now
from on_api.core.models.imports import (
    DONE,
    DRAFT,
    FAILED,
    MOVING,
    REASON_LENGTH,
    RUNNING,
    SKIPPED,
    WAITING,
)
from on_api.core.models.pin import PINNED_STATUS
from on_api.core.services.content import contents
from on_api.core.services.shared import events, leased_jobs

_IS_UNDER_WAY = Import.status.in_((DRAFT, RUNNING))
MOST_ALIKE = 100
"""Most pins or files of one content and name that are compared with an item."""


class LostError(Exception):
    """Error: the claim on the import is lost, or the import is no longer wanted."""


@dataclass(frozen=True, slots=True)
class ImportClaim:
    """Import to be carried out by the holder of the token. `attempts` counts this one."""

    id: uuid.UUID
    token: uuid.UUID
    user_id: uuid.UUID
    kind: str
    status: str
    route: str
    gateway_url: str | None
    listed: bool
    resume: str | None
    delegates: tuple[str, ...]
    total: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Item:
    """Item to be moved, taken at `began` by `time.monotonic()`."""

    id: uuid.UUID
    cid: str
    source_cid: str
    name: str | None
    meta: dict[str, Any] | None
    file: dict[str, Any] | None
    origins: tuple[str, ...]
    source_created_at: datetime | None
    size: int | None
    route: str | None
    began: float
    pin_id: uuid.UUID | None
    file_id: uuid.UUID | None
    was_here: bool


@dataclass(frozen=True, slots=True)
class PinState:
    """Progress of an item's pin."""

    status: str
    stat: DagStat
    attempts: int
    details: str | None


def any_due(session: Session) -> bool:
    """Return whether `claim` would find an import. Reads only."""
    return leased_jobs.any_due(session, Import, _IS_UNDER_WAY)


def next_due(session: Session) -> float | None:
    """Return the seconds until the next import is due; None while none waits."""
    return leased_jobs.next_due(session, Import, _IS_UNDER_WAY)


def claim(session: Session, life: timedelta) -> ImportClaim | None:
    """Claim the import that has been due for longest, for `life`."""
    claimed = leased_jobs.claim(session, Import, life, _IS_UNDER_WAY)
    if claimed is None:
        return None
    row, token = claimed
    return ImportClaim(
        id=row.id,
        token=token,
        user_id=row.user_id,
        kind=row.kind,
        status=row.status,
        route=row.route,
        gateway_url=row.gateway_url,
        listed=row.listed_at is not None,
        resume=row.resume,
        delegates=tuple(row.delegates),
        total=row.total,
        attempts=row.attempts,
    )


def renew(
    session: Session, claim: ImportClaim, life: timedelta, seen: Mapping[uuid.UUID, DagStat]
) -> bool:
    """Renew an import's lease, and record the progress of items from a gateway. Returns False when
    the lease was lost, or the import is no longer wanted."""
    if not leased_jobs.renew(session, Import, claim.id, claim.token, life):
        return False
    for item_id, stat in seen.items():
        session.execute(
            update(ImportItem)
            .where(ImportItem.id == item_id, ImportItem.status == MOVING)
            .values(dag_size=stat.size, blocks=stat.blocks)
        )
    return True


def take(
    session: Session, claim: ImportClaim, limit: int, under_way: Mapping[uuid.UUID, str]
) -> Sequence[Item]:
    """Take up to `limit` items to be moved, those left under way by a crash first.

    No two items of one CID are moved at the same time (`under_way`: item → CID), so that the second
    finds what the first has moved.
    """
    lock(session, claim)
    cids = set(under_way.values())
    taken: list[Item] = []
    for status in (MOVING, WAITING):
        found = session.scalars(
            select(ImportItem)
            .where(
                ImportItem.import_id == claim.id,
                ImportItem.status == status,
                ImportItem.id.not_in(under_way),
                ImportItem.cid.not_in(cids),
            )
            .order_by(ImportItem.created_at)
            .limit(limit - len(taken))
        ).all()
        for item in found:
            if item.cid in cids:
                continue
            cids.add(item.cid or "")
            # An item that was under way gets a whole attempt too, however long ago it began.
            item.status, item.started_at = MOVING, utc_now()
            taken.append(_as_item(item))
    session.flush()
    return taken


def usage_for(session: Session, claim: ImportClaim) -> tuple[UserUsage, Import]:
    """Lock the user's usage and the import, for changes to both, and return them. Raises
    `LostError`."""
    try:
        usage = contents.lock_usage(session, claim.user_id)
    except Unauthorized:
        raise LostError from None
    if session.get_one(User, claim.user_id).deleted_at is not None:
        raise LostError
    return usage, lock(session, claim)


def get_item(session: Session, item_id: uuid.UUID) -> ImportItem:
    """Return an item of a locked import. Raises `LostError` when it is no longer moving."""
    row = session.get(ImportItem, item_id, populate_existing=True)
    if row is None or row.status != MOVING:
        raise LostError
    return row


def same_pin(
    session: Session, user_id: uuid.UUID, cid: str, name: str | None, meta: dict[str, Any] | None
) -> Pin | None:
    """Return a pin of the user's that is equal to what an item would become, or None."""
    alike = session.scalars(
        select(Pin)
        .where(
            Pin.user_id == user_id,
            Pin.cid == cid,
            Pin.status == PINNED_STATUS,
            Pin.removed_at.is_(None),
            Pin.name == name if name is not None else Pin.name.is_(None),
        )
        .limit(MOST_ALIKE)
    )
    return next((pin for pin in alike if (pin.meta or None) == (meta or None)), None)


def same_file(session: Session, user_id: uuid.UUID, item: Item) -> File | None:
    """Return a file of the user's that is equal to what the item would become, with all metadata of
    its source, or None. It need not be one that can be opened here."""
    listed = item.file or {}
    alike = session.scalars(
        select(File)
        .where(
            File.user_id == user_id,
            File.cid == item.cid,
            File.name == listed["name"],
            File.visibility == listed["visibility"],
            File.size == listed["size"],
            File.sha256 == bytes.fromhex(listed["sha256"]),
            File.media_type == listed["media_type"],
        )
        .limit(MOST_ALIKE)
    )
    return next((file for file in alike if file.meta == listed["meta"]), None)


def pin_states(session: Session, pin_ids: Collection[uuid.UUID]) -> Mapping[uuid.UUID, PinState]:
    """Return the progress of pins by id; removed ones are missing."""
    statement = select(Pin.id, Pin.status, Pin.dag_size, Pin.blocks, Pin.attempts, Pin.details)
    found = session.execute(statement.where(Pin.id.in_(pin_ids), Pin.removed_at.is_(None)))
    return {
        row.id: PinState(
            row.status, DagStat(row.dag_size or 0, row.blocks or 0), row.attempts, row.details
        )
        for row in found
    }


def is_still_here(session: Session, user_id: uuid.UUID, item: ImportItem) -> bool:
    """Return whether the pin or file that an item was found as is still there."""
    if item.file_id is not None:
        file = session.get(File, item.file_id, populate_existing=True)
        return file is not None and file.user_id == user_id
    state = pin_states(session, () if item.pin_id is None else (item.pin_id,)).values()
    return any(each.status == PINNED_STATUS for each in state)


def end_item(
    session: Session, claim: ImportClaim, item: ImportItem, stat: DagStat, note: str | None = None
) -> None:
    """Record that an item is here, every block of it verified; `note` says what could not be. The
    import is locked."""
    row = lock(session, claim)
    item.status = SKIPPED if item.was_here else DONE
    item.blocks, item.dag_size, item.verified = stat.blocks, stat.size, True
    item.reason, item.seconds = None, _seconds_since(item.started_at)
    if note is not None:
        item.note = note[:REASON_LENGTH]
    row.done += 1
    row.skipped += item.was_here
    row.moved_bytes += 0 if item.was_here else stat.size
    session.flush()


def fail_item(session: Session, claim: ImportClaim, item: ImportItem, reason: str) -> None:
    """Record that an item can't be moved, or that what is here of it can't be used. The import is
    locked."""
    row = lock(session, claim)
    item.status, item.reason = FAILED, reason[:REASON_LENGTH]
    item.seconds = _seconds_since(item.started_at)
    item.blocks, item.dag_size, item.verified = None, None, False
    row.failed += 1
    session.flush()


def finish(session: Session, claim: ImportClaim) -> str | None:
    """End an import that has no work left. Returns its status, None if there is work left."""
    row = lock(session, claim)
    left = exists().where(ImportItem.import_id == row.id, ImportItem.status.in_((WAITING, MOVING)))
    if session.scalar(select(left)):
        return None
    missing = (
        f"{row.failed} of {row.total} items could not be imported; see the report for the reasons."
    )
    nothing_came = row.failed > 0 and row.done == 0
    _end(session, row, FAILED if nothing_came else DONE, missing if row.failed else None)
    return row.status


def give_up(session: Session, claim: ImportClaim, error: str) -> None:
    """End an import as failed, with the reason."""
    _end(session, lock(session, claim), FAILED, error[:REASON_LENGTH])


def put_back(
    session: Session,
    claim: ImportClaim,
    error: str | None,
    *,
    due_in: timedelta,
    counted: bool = True,
) -> None:
    """Return an import to the queue; does nothing if it was lost. `counted=False`: without counting
    the attempt."""
    try:
        row = lock(session, claim)
    except LostError:
        return
    leased_jobs.put_back(row, due_in=due_in, counted=counted)
    row.error = None if error is None else error[:REASON_LENGTH]


def lock(session: Session, claim: ImportClaim) -> Import:
    """Lock and return the import. Raises `LostError` when the claim is over."""
    row = leased_jobs.lock_claimed(session, Import, claim.id, claim.token)
    if row is None:
        raise LostError
    return row


def let_go(row: Import) -> None:
    """Release an import that has no more work for a worker."""
    row.release()
    row.due_at = None


def _as_item(row: ImportItem) -> Item:
    return Item(
        id=row.id,
        cid=row.cid or "",
        source_cid=row.source_cid,
        name=row.name,
        meta=row.meta,
        file=row.file,
        origins=tuple(row.origins),
        source_created_at=row.source_created_at,
        size=row.size,
        route=row.route,
        began=time.monotonic(),
        pin_id=row.pin_id,
        file_id=row.file_id,
        was_here=row.was_here,
    )


def _end(session: Session, row: Import, status: str, error: str | None) -> None:
    row.status, row.error, row.finished_at = status, error, utc_now()
    row.secrets = row.secret_version = None
    let_go(row)
    events.record(
        session, row.user_id, f"import.{status}", row.id, done=row.done, failed=row.failed
    )
    session.flush()


def _seconds_since(moment: datetime | None) -> float:
    return 0.0 if moment is None else (utc_now() - moment).total_seconds()
