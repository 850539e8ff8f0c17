"""Losses: rows whose content the node has lost, and dropping them.

If they stayed, they would be promises that can't be kept, and garbage collection would be unsafe
for ever. Only listed rows are dropped: a user who has sent the same bytes again meanwhile keeps
them.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from on_api.core.models import Database, File, Pin, Share, User
from on_api.core.models.pin import PINNED_STATUS
from on_api.core.services.accounts import audit
from on_api.core.services.accounts.audit import Actor
from on_api.core.services.content import contents
from on_api.core.services.files.files import delete_file
from on_api.core.services.pins.pins import end_pin
from on_api.core.services.shared import events


@dataclass(frozen=True, slots=True)
class LostReference:
    """One user's reference to a lost content: a `file` or a `pin`. `shares`: number of links to the
    file."""

    kind: str
    id: uuid.UUID
    user_id: uuid.UUID
    username: str
    name: str | None
    size: int | None
    """Bytes of a file."""
    shares: int = 0


@dataclass(frozen=True, slots=True)
class LostContent:
    """A lost content. `details` says what is missing."""

    cid: str
    details: str
    references: Sequence[LostReference]

    def as_document(self) -> dict[str, Any]:
        """Return the loss as a document for scripts."""
        return asdict(self)


def loss_of(database: Database, cid: str, details: str) -> LostContent:
    """Return the references of all users to a lost content."""
    with database.session_scope(write=False) as session:
        links = (
            select(func.count())
            .where(Share.file_id == File.id, Share.revoked_at.is_(None))
            .scalar_subquery()
        )
        files = session.execute(
            select(File.id, File.user_id, User.username, File.name, File.size, links)
            .join(User, User.id == File.user_id)
            .where(File.cid == cid)
            .order_by(User.username, File.created_at)
        ).all()
        pins = session.execute(
            select(Pin.id, Pin.user_id, User.username, Pin.name)
            .join(User, User.id == Pin.user_id)
            .where(Pin.cid == cid, Pin.status == PINNED_STATUS)
            .order_by(User.username, Pin.created_at)
        ).all()
    references = [
        *(LostReference("file", *row) for row in files),
        *(LostReference("pin", *row, size=None) for row in pins),
    ]
    return LostContent(cid, details, references)


def drop(session: Session, loss: LostContent, user_id: uuid.UUID, actor: Actor) -> None:
    """Drop the rows of one user that refer to a lost content, if they are still there, and record
    events for the user.

    The storage charged for it is released with the last of them.
    """
    usage = contents.lock_usage(session, user_id)
    named: dict[str, list[str]] = {"files": [], "pins": []}
    shares = 0
    for each in loss.references:
        if each.user_id != user_id:
            continue
        row: File | Pin | None
        if each.kind == "file":
            row = session.get(File, each.id, with_for_update=True, populate_existing=True)
        else:
            row = session.get(Pin, each.id, with_for_update=True, populate_existing=True)
        if row is None or row.cid != loss.cid:
            continue
        events.record(session, user_id, f"{each.kind}.lost", each.id, cid=loss.cid)
        if isinstance(row, File):
            delete_file(session, user_id, row.id)
        else:
            end_pin(session, usage, row)
        named[f"{each.kind}s"].append(str(each.id))
        shares += each.shares
    audit.record(
        session, actor, "content.drop_lost", "user", user_id,
        cid=loss.cid, reason=loss.details, shares=shares, **named,
    )  # fmt: skip
