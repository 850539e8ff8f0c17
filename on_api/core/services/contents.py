"""The life of content: who refers to a DAG on the node, and what each user is charged for it.

A reference is added or dropped in one transaction with the row that refers (a file, later a pin).
The content's row is locked first, always in order of CID, so that no two transactions wait for each
other.
"""

from __future__ import annotations

import uuid

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from on_api.core.errors import ServiceUnavailable, Unauthorized
from on_api.core.models import Content, Holding, UserUsage
from on_api.core.models.content import ABSENT, PINNED, UNPINNING
from on_api.core.models.database import insert_unless_there, utc_now


def add_reference(session: Session, usage: UserUsage, cid: str, dag_size: int) -> None:
    """One more reference of a user to content that is pinned on the node right now.

    `dag_size` in bytes is charged once per user. Raises `ServiceUnavailable` while the content is
    just being unpinned: what was pinned a moment ago may be gone in the next.
    """
    insert_unless_there(
        session,
        Content,
        cid=cid,
        state=PINNED,
        generation=1,
        pin_root_id=cid,
        dag_size=dag_size,
        created_at=utc_now(),
    )
    content = _lock(session, cid)
    if content.state == UNPINNING:
        raise ServiceUnavailable("This content is just being removed; send it again in a moment.")
    if content.state == ABSENT:
        content.state = PINNED
        content.generation += 1
        content.pin_root_id = cid
        content.dag_size = dag_size
    content.unreferenced_at = None
    holding = session.get(Holding, (usage.user_id, cid))
    if holding is None:
        session.add(Holding(user_id=usage.user_id, cid=cid, references=1, bytes=content.dag_size))
        usage.storage_bytes += content.dag_size
    else:
        holding.references += 1
    session.flush()


def drop_reference(session: Session, usage: UserUsage, cid: str) -> None:
    """One reference of a user less; the last one of all stamps `unreferenced_at`. Nothing is
    unpinned here."""
    content = _lock(session, cid)
    holding = session.get_one(Holding, (usage.user_id, cid), populate_existing=True)
    if holding.references > 1:
        holding.references -= 1
        return
    usage.storage_bytes -= holding.bytes
    session.delete(holding)
    session.flush()
    if not session.scalar(select(exists().where(Holding.cid == cid))):
        content.unreferenced_at = utc_now()


def lock_usage(session: Session, user_id: uuid.UUID) -> UserUsage:
    """A user's counters, locked: before any content, so that the order is the same everywhere.

    Raises `Unauthorized` for a user who is gone.
    """
    usage = session.scalar(select(UserUsage).where(UserUsage.user_id == user_id).with_for_update())
    if usage is None:
        raise Unauthorized
    return usage


def _lock(session: Session, cid: str) -> Content:
    return session.scalars(
        select(Content)
        .where(Content.cid == cid)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one()
