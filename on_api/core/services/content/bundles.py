"""Bundles: the contents that one covers, and its end when they die.

A bundle is a content like others, but no user's: it is held while any of its members lives. Members
only ever leave: by a removal, or for a pin of their own. The caller locks members and bundle.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, SQLColumnExpression, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from on_api.core.models import Content, Holding
from on_api.core.models.content import PINNED
from on_api.core.models.database import database_now

LIVELY_DIVISOR = 2
"""A bundle is thin when its living members are less than one part in so many of its bytes."""

_member = aliased(Content)

CidColumn = SQLColumnExpression[str] | str


def is_held(cid: CidColumn) -> ColumnElement[bool]:
    """Return the SQL condition that a user holds the content, or that it is a bundle with living
    members."""
    return or_(exists().where(Holding.cid == cid), covers_anything(cid))


def covers_anything(cid: CidColumn) -> ColumnElement[bool]:
    """Return the SQL condition that the content is a bundle with living members."""
    return exists().where(_member.pin_root_id == cid, _member.cid != cid, _member.state == PINNED)


def is_member() -> ColumnElement[bool]:
    """Return the SQL condition that the content is covered by a bundle and by no pin of its own."""
    return (Content.pin_root_id != Content.cid) & Content.pinned_too.is_(False)


def members(session: Session, bundle: str) -> dict[str, int]:
    """Return the living members of a bundle: generation by CID."""
    found = session.execute(
        select(Content.cid, Content.generation)
        .where(Content.pin_root_id == bundle, Content.cid != bundle, Content.state == PINNED)
        .order_by(Content.cid)
    )
    return dict(found.all())


def leave(session: Session, content: Content, bundle: Content | None, since: datetime) -> None:
    """Take a content out of its bundle, and stamp the bundle as `look_through` does."""
    content.pin_root_id, content.pinned_too = content.cid, False
    session.flush()
    if bundle is not None and bundle.cid != content.cid:
        look_through(session, bundle, since)


def look_through(session: Session, bundle: Content, since: datetime) -> None:
    """Stamp a bundle that members have left: as unreferenced from `since` on when none lives and no
    user holds it, as thin when too few live."""
    alive, size = session.execute(
        select(func.count(), func.coalesce(func.sum(_member.dag_size), 0)).where(
            _member.pin_root_id == bundle.cid,
            _member.cid != bundle.cid,
            _member.state == PINNED,
        )
    ).one()
    if alive == 0:
        bundle.thinned_at = None
        if not session.scalar(select(exists().where(Holding.cid == bundle.cid))):
            bundle.unreferenced_at = since
    elif size * LIVELY_DIVISOR < bundle.dag_size and bundle.thinned_at is None:
        bundle.thinned_at = database_now()


def claim_thin(session: Session, pause: timedelta) -> str | None:
    """Return the thin bundle that has been due for longest, None if there is none; it is due again
    after `pause`."""
    bundle = session.scalar(
        select(Content)
        .where(Content.thinned_at <= database_now(), Content.state == PINNED)
        .order_by(Content.thinned_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if bundle is None:
        return None
    bundle.thinned_at = database_now(pause)
    return bundle.cid


def any_thin(session: Session) -> bool:
    """Return whether a thin bundle is due. Reads only: on SQLite looking must not take the writer's
    place."""
    due = exists().where(Content.thinned_at <= database_now(), Content.state == PINNED)
    return bool(session.scalar(select(due)))
