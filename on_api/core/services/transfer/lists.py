"""Listing, the first half of an import: the worker reads what the source has, page by page, and
stores it here as the items that are moved afterwards.

A listing is a call of `begin_listing`, one of `add_page` for each page, and `end_listing`. Each is
one transaction and raises `LostError` when the worker no longer has the import's lease, so that two
workers never write to one list. After a crash the next worker continues after the last page.
"""

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
"""Time between the `created_at` of an import's items, which keeps them in the source's order."""


def secrets_of(session: Session, claim: ImportClaim) -> tuple[int, bytes] | None:
    """Return the version of the master secret that opens an import's source, and the source itself,
    sealed: its address and credentials. None if they are erased already."""
    row = lock(session, claim)
    if row.secrets is None or row.secret_version is None:
        return None
    return row.secret_version, row.secrets


def begin_listing(session: Session, claim: ImportClaim, delegates: Sequence[str]) -> None:
    """Record the multiaddrs at which, by the source's word, its content can be fetched."""
    lock(session, claim).delegates = list(delegates)


def add_page(
    session: Session, claim: ImportClaim, items: Sequence[SourceItem], resume: str, max_items: int
) -> None:
    """Add a page of the source's list to the import's items and counters. `resume` is the source's
    cursor after this page. Raises `BadRequest` if the import then has more than `max_items`."""
    row = lock(session, claim)
    if row.total + len(items) > max_items:
        raise BadRequest(f"The source lists more than {max_items} items.")
    has_identity = exists().where(Identity.user_id == claim.user_id)
    opens_private = bool(session.scalar(select(has_identity)))
    item_rows = [
        _item_row(row, item, position, opens_private=opens_private)
        for position, item in enumerate(items, start=row.total)
    ]
    cids = {item.cid for item in item_rows if item.cid is not None}
    held = _held_cids(session, claim.user_id, cids)
    for item in item_rows:
        row.failed += item.status == FAILED
        row.known_bytes += item.size or 0
        row.unknown_sizes += item.size is None and item.status != FAILED
        if item.cid in held:
            row.here += 1
            row.here_bytes += item.size or 0
    row.total += len(item_rows)
    # The attempts that are counted are those at one page: the next page begins with none.
    row.resume, row.attempts, row.error = resume, 0, None
    session.add_all(item_rows)
    session.flush()


def end_listing(session: Session, claim: ImportClaim) -> bool:
    """End the listing, and erase the source's credentials, which nothing needs any more.

    Returns True if the import is running: its items are to be moved at once. A draft is released
    instead: its owner looks at the items first, and starts it.
    """
    row = lock(session, claim)
    row.listed_at, row.secrets, row.secret_version = utc_now(), None, None
    row.attempts, row.error = 0, None
    if row.status == RUNNING:
        return True
    let_go(row)
    return False


def _item_row(row: Import, item: SourceItem, position: int, *, opens_private: bool) -> ImportItem:
    """Return the row for an item of the source, `FAILED` with a reason if it can't be moved.
    `opens_private` says whether the user has identities, with which private files may be opened."""
    cid, problem = None, item.problem
    if opens_private and item.file is not None and item.file.visibility == PRIVATE:
        # The source can't know the user's identities here. Whether one of them opens the file is
        # seen from its header, when it is moved.
        problem = None
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
    """Return the file's metadata as JSON, as an item keeps it until the item becomes a file."""
    return {
        "name": file.name,
        "media_type": file.media_type,
        "size": file.size,
        "sha256": file.sha256.hex(),
        "visibility": file.visibility,
        "meta": dict(file.meta),
    }


def _held_cids(session: Session, user_id: uuid.UUID, cids: set[str]) -> set[str]:
    """Return those of the CIDs of which the user has a holding already."""
    statement = select(Holding.cid).where(Holding.user_id == user_id, Holding.cid.in_(cids))
    return set(session.scalars(statement))
