"""Which contents a bundle covers: what lives in it, and what becomes of it when something dies.

A bundle is a content like others, but nobody's: while anything lives in it, it is held. Its members
never change but by leaving: a removal, or a pin of their own. Members and bundle are locked by the
caller.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, SQLColumnExpression, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from on_api.core.models import Content, Holding
from on_api.core.models.content import PINNED
from on_api.core.models.database import database_now

LIVELY = 2
"""A bundle is thin when what lives in it is less than one part in so many of its bytes."""

_member = aliased(Content)

CidColumn = SQLColumnExpression[str] | str


def is_held(cid: CidColumn) -> ColumnElement[bool]:
    """Whether somebody holds a content, or something lives in it."""
    return or_(exists().where(Holding.cid == cid), covers_anything(cid))


def covers_anything(cid: CidColumn) -> ColumnElement[bool]:
    """Whether it is a bundle in which something lives."""
    return exists().where(_member.pin_root_id == cid, _member.cid != cid, _member.state == PINNED)


def is_member() -> ColumnElement[bool]:
    """Whether a content is covered by a bundle and by no pin of its own."""
    return (Content.pin_root_id != Content.cid) & Content.pinned_too.is_(False)


def members(session: Session, bundle: str) -> dict[str, int]:
    """What lives in a bundle: CID and generation."""
    found = session.execute(
        select(Content.cid, Content.generation)
        .where(Content.pin_root_id == bundle, Content.cid != bundle, Content.state == PINNED)
        .order_by(Content.cid)
    )
    return dict(found.all())


def leave(session: Session, content: Content, bundle: Content | None, since: datetime) -> None:
    """The bundle covers a content no more. If it was the last one the bundle is nobody's `since`
    then."""
    content.pin_root_id, content.pinned_too = content.cid, False
    session.flush()
    if bundle is not None and bundle.cid != content.cid:
        look_through(session, bundle, since)


def look_through(session: Session, bundle: Content, since: datetime) -> None:
    """Something has left a bundle: stamp it when nothing lives in it, or too little."""
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
    elif size * LIVELY < bundle.dag_size and bundle.thinned_at is None:
        bundle.thinned_at = database_now()


def claim_thin(session: Session, pause: timedelta) -> str | None:
    """The thin bundle that has been due for longest; it is due again after `pause`."""
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
    """Asked by reading alone: on SQLite looking must not take the writer's place."""
    due = exists().where(Content.thinned_at <= database_now(), Content.state == PINNED)
    return bool(session.scalar(select(due)))
