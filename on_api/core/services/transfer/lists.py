"""List of an import: its source's contents, stored as items page by page, under the import's
lease."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from on_api.core.errors import BadRequest
from on_api.core.ipfs.formats.cid import normalise
from on_api.core.models import Holding, Identity, Import, ImportItem
from on_api.core.models.database import new_id, utc_now
from on_api.core.models.file import PRIVATE
from on_api.core.models.imports import (
    FAILED,
    ITEM_NAME_LENGTH,
    REASON_LENGTH,
    RUNNING,
    WAITING,
)
from on_api.core.providers.base import SourceFile, SourceItem
from on_api.core.services.transfer.jobs import ImportClaim, let_go, lock

ITEM_STEP = timedelta(microseconds=1)


def secrets_of(session: Session, claim: ImportClaim) -> tuple[int, bytes] | None:
    """Return the sealed source of an import, and first the version of the master secret that opens
    it; None if the source is forgotten."""
    row = lock(session, claim)
    if row.secrets is None or row.secret_version is None:
        return None
    return row.secret_version, row.secrets


def begin_listing(session: Session, claim: ImportClaim, delegates: Sequence[str]) -> None:
    """Record where the source's content can be fetched, as the source says."""
    lock(session, claim).delegates = list(delegates)


def add_page(
    session: Session, claim: ImportClaim, items: Sequence[SourceItem], resume: str, most: int
) -> None:
    """Add a page of the source's list, and record where to resume. Raises `BadRequest` for more
    than `most` items in all."""
    row = lock(session, claim)
    if row.total + len(items) > most:
        raise BadRequest(f"The source lists more than {most} items.")
    mine = exists().where(Identity.user_id == claim.user_id)
    has_keys = bool(session.scalar(select(mine)))
    rows = [
        _listed(row, item, position, has_keys=has_keys)
        for position, item in enumerate(items, start=row.total)
    ]
    held = _held(session, claim.user_id, {item.cid for item in rows if item.cid is not None})
    for item in rows:
        row.failed += item.status == FAILED
        row.known_bytes += item.size or 0
        row.unknown_sizes += item.size is None and item.status != FAILED
        if item.cid in held:
            row.here += 1
            row.here_bytes += item.size or 0
    row.total += len(rows)
    row.resume, row.attempts, row.error = resume, 0, None
    session.add_all(rows)
    session.flush()


def end_listing(session: Session, claim: ImportClaim) -> bool:
    """End the listing, and forget the source's credentials. Returns whether the items are to be
    moved at once."""
    row = lock(session, claim)
    row.listed_at, row.secrets, row.secret_version = utc_now(), None, None
    row.attempts, row.error = 0, None
    if row.status == RUNNING:
        return True
    let_go(row)
    return False


def _listed(row: Import, item: SourceItem, position: int, *, has_keys: bool) -> ImportItem:
    cid, problem = None, item.problem
    if has_keys and item.file is not None and item.file.visibility == PRIVATE:
        problem = None  # its header shows whether one of them opens it
    try:
        cid = normalise(item.cid)
    except BadRequest:
        problem = problem or "This is not a valid CID."
    return ImportItem(
        id=new_id(),
        import_id=row.id,
        position=position,
        created_at=row.created_at + position * ITEM_STEP,
        source_cid=item.cid[:ITEM_NAME_LENGTH],
        cid=cid,
        name=item.name or None,
        meta=dict(item.meta) or None,
        file=None if item.file is None else _file_document(item.file),
        origins=list(item.origins),
        source_created_at=item.created_at,
        size=item.size,
        status=WAITING if problem is None else FAILED,
        reason=None if problem is None else problem[:REASON_LENGTH],
        note=None if item.note is None else item.note[:REASON_LENGTH],
    )


def _file_document(file: SourceFile) -> dict[str, Any]:
    return {
        "name": file.name,
        "media_type": file.media_type,
        "size": file.size,
        "sha256": file.sha256.hex(),
        "visibility": file.visibility,
        "meta": dict(file.meta),
    }


def _held(session: Session, user_id: uuid.UUID, cids: set[str]) -> set[str]:
    statement = select(Holding.cid).where(Holding.user_id == user_id, Holding.cid.in_(cids))
    return set(session.scalars(statement))
