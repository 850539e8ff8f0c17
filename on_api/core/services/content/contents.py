"""The life of content: references to a DAG on the node, what each user is charged for it, and its
removal when it has no references.

A reference is added or dropped in one transaction with the row that refers (a file, a pin). The
content's row is locked first, always in order of CID, so that no two transactions wait for each
other. No lock can span a call to the node: a removal is a state with a lease, and a transaction
that meets one (`NotSecuredError`) is repeated after `pin_reconciler.py` has made sure of the node's
pin.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from sqlalchemy import ColumnElement, Select, and_, bindparam, exists, func, select
from sqlalchemy.orm import Session, contains_eager

from on_api.core.errors import Unauthorized
from on_api.core.models import Content, Pin, User, UserUsage
from on_api.core.models.content import ABSENT, PINNED, UNPINNING
from on_api.core.models.database import (
    database_now,
    insert_unless_there,
    moment_of,
    new_id,
    utc_now,
)
from on_api.core.models.pin import PINNING, QUEUED
from on_api.core.services.content import bundles

_EPOCH = datetime.fromtimestamp(0, UTC)
NEVER = timedelta(days=36_500)
"""Grace that never ends: only content that on-api does not keep is claimed."""


class NotSecuredError(Exception):
    """The node's pin can't be relied on: the content was removed, or is being removed right now."""

    def __init__(self, cid: str) -> None:
        super().__init__(cid)
        self.cid = cid


@dataclass(frozen=True, slots=True)
class Removal:
    """The right to unpin a content, until `ends_at` by `time.monotonic()`."""

    cid: str
    token: uuid.UUID
    ends_at: float


def lock_usage(session: Session, user_id: uuid.UUID) -> UserUsage:
    """Lock a user's counters and return them. Comes before any lock of a content, so that the order
    is the same everywhere.

    Raises `Unauthorized` for a user who is gone.
    """
    usage = session.scalar(select(UserUsage).where(UserUsage.user_id == user_id).with_for_update())
    if usage is None:
        raise Unauthorized
    return usage


def usages_of(session: Session, user_ids: Collection[uuid.UUID]) -> Mapping[uuid.UUID, UserUsage]:
    """Lock the counters of those users who exist and are not deleted, in the common order. The
    users are loaded too, for their quotas."""
    found = session.scalars(_usages(), {"users": list(user_ids)})
    return {usage.user_id: usage for usage in found}


@cache
def _usages() -> Select[UserUsage]:
    """Build the statement. Built once: that takes as long as running it."""
    return (
        select(UserUsage)
        .join(UserUsage.user)
        .where(UserUsage.user_id.in_(bindparam("users", expanding=True)), User.deleted_at.is_(None))
        .options(contains_eager(UserUsage.user))
        .order_by(UserUsage.user_id)
        .with_for_update(of=UserUsage)
    )


def usage_of(session: Session, user_id: uuid.UUID) -> UserUsage:
    """Return a user's counters without locking them."""
    return session.get_one(UserUsage, user_id)


def next_moments(usage: UserUsage, count: int, *, step: timedelta) -> list[datetime]:
    """Return the `created_at` of a user's next `count` references, each strictly later than all
    before, so that `before` and `after` never skip one. Multiples of `step`; `usage` is locked."""
    tick = (utc_now() - _EPOCH) // step
    if usage.last_created_at is not None:
        tick = max(tick, (usage.last_created_at - _EPOCH) // step + 1)
    moments = [_EPOCH + each * step for each in range(tick, tick + count)]
    if moments:
        usage.last_created_at = moments[-1]
    return moments


def next_moment(usage: UserUsage, *, step: timedelta) -> datetime:
    """Return the `created_at` of a user's next reference: see `next_moments`."""
    return next_moments(usage, 1, step=step)[0]


def root_of(session: Session, cid: str) -> str | None:
    """Return the root that the node must have pinned for `cid`; None unless the content is
    `pinned`."""
    return session.scalar(
        select(Content.pin_root_id).where(Content.cid == cid, Content.state == PINNED)
    )


def kept_sizes(session: Session, cids: Collection[str]) -> dict[str, int]:
    """Return the bytes of those contents that on-api keeps, by CID."""
    statement = select(Content.cid, Content.dag_size)
    kept = session.execute(statement.where(Content.cid.in_(cids), Content.state == PINNED))
    return dict(kept.all())


def lock(session: Session, cid: str) -> Content | None:
    """Lock a content's row and read it again. Returns None for a CID never seen."""
    return session.scalar(
        select(Content)
        .where(Content.cid == cid)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def lock_all(session: Session, cids: Iterable[str]) -> Mapping[str, Content]:
    """Lock several contents at once, in order of CID, before anything that locks one of them.
    Returns those that exist."""
    found = session.scalars(
        select(Content)
        .where(Content.cid.in_(set(cids)))
        .order_by(Content.cid)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    return {content.cid: content for content in found}


def any_to_let_go(session: Session, grace: timedelta) -> bool:
    """Return whether `let_go` has anything to do. Reads only: on SQLite looking must not take the
    writer's place."""
    return session.scalar(select(Content.cid).where(_is_let_go(grace)).limit(1)) is not None


def let_go(session: Session, grace: timedelta, limit: int) -> int:
    """Mark up to `limit` bundle members that have been unreferenced for `grace` as absent. They
    have no pin of their own, so the node is not called. Returns how many."""
    found = session.execute(
        select(Content.cid, Content.pin_root_id)
        .where(_is_let_go(grace))
        .order_by(Content.unreferenced_at)
        .limit(limit)
    ).all()
    bundle_of = dict(found)
    locked = lock_all(session, (*bundle_of, *bundle_of.values()))
    # Checked again under the locks.
    still = select(Content.cid).where(Content.cid.in_(bundle_of), _is_let_go(grace))
    ending = [locked[cid] for cid in session.scalars(still)]
    gone = [content for content in ending if content.pin_root_id in locked]
    left: dict[str, datetime] = {}
    for content in gone:
        since = content.unreferenced_at or moment_of(session)
        left[content.pin_root_id] = max(since, left.get(content.pin_root_id, since))
        content.generation += 1
        content.pin_root_id = content.cid
        make_absent(content)
    session.flush()
    for bundle, since in left.items():
        bundles.look_through(session, locked[bundle], since)
    return len(gone)


def removable(session: Session, grace: timedelta, limit: int) -> Sequence[str]:
    """Return up to `limit` CIDs that have been unreferenced for `grace`, or whose removal was left
    unfinished, without those that `let_go` ends."""
    # Two queries, each on an index of its own: a single one would read everything that is in its
    # time of grace.
    unreferenced = (
        select(Content.cid)
        .where(
            Content.state == PINNED,
            Content.unreferenced_at <= database_now(-grace),
            ~bundles.is_member(),
        )
        .order_by(Content.unreferenced_at)
    )
    left = select(Content.cid).where(
        Content.state == UNPINNING, Content.lease_until < database_now()
    )
    found = session.scalars(left.limit(limit)).all()
    return [*found, *session.scalars(unreferenced.limit(limit - len(found)))]


def overdue_removals(session: Session, grace: timedelta, limit: int) -> tuple[int, float]:
    """Return how many contents, counted up to `limit`, are to be unpinned because they have been
    unreferenced for `grace`, and the seconds for which the first of them has been due (0: none is).
    Those that an unfinished pin awaits stay."""
    due = select(Content.unreferenced_at).where(
        Content.state == PINNED, Content.unreferenced_at <= database_now(-grace)
    )
    first = due.where(~_is_awaited(Content.cid)).order_by(Content.unreferenced_at).limit(1)
    if (since := session.scalar(first)) is None:
        return 0, 0.0
    counted = session.scalar(select(func.count()).select_from(due.limit(limit).subquery())) or 0
    return counted, (moment_of(session) - since - grace).total_seconds()


def begin_removal(
    session: Session, cid: str, *, grace: timedelta, life: timedelta
) -> Removal | None:
    """Claim the unpinning of a content for `life`, if it has been unreferenced for `grace` and no
    queued pin needs it.

    A CID that on-api doesn't keep is claimed at once: the node has a pin of ours without a row.
    Returns None if it can't be claimed.
    """
    insert_unless_there(
        session,
        Content,
        cid=cid,
        state=ABSENT,
        generation=0,
        pin_root_id=cid,
        dag_size=0,
        created_at=utc_now(),
    )
    root = session.scalar(select(Content.pin_root_id).where(Content.cid == cid)) or cid
    locked = lock_all(session, (cid, root))
    content = locked[cid]
    now, ends_at = moment_of(session), time.monotonic() + life.total_seconds()
    if content.state == UNPINNING and content.lease_until and content.lease_until > now:
        return None
    if content.pin_root_id not in locked:  # its root has changed since it was read
        return None
    if content.state == PINNED and (
        content.unreferenced_at is None or content.unreferenced_at > now - grace
    ):
        return None
    wanted = bundles.is_held(cid) | _is_awaited(cid)
    if content.state != UNPINNING and session.scalar(select(wanted)):
        return None
    content.state = UNPINNING
    content.generation += 1
    content.lease_token = new_id()
    content.lease_until = now + life
    content.unreferenced_at = content.unreferenced_at or now
    bundles.leave(session, content, locked[root], content.unreferenced_at)
    return Removal(cid, content.lease_token, ends_at)


def finish_removal(session: Session, removal: Removal) -> bool:
    """Record that the node has unpinned a content. Returns False when the claim was lost: the
    content may have been referenced again before it was unpinned."""
    content = lock(session, removal.cid)
    if content is None or content.lease_token != removal.token:
        return False
    make_absent(content)
    return True


def make_absent(content: Content) -> None:
    """Set a content to absent, at the end of its removal; `content` is locked."""
    content.state = ABSENT
    content.lease_token = content.lease_until = content.unreferenced_at = None


def _is_let_go(grace: timedelta) -> ColumnElement[bool]:
    return and_(
        Content.state == PINNED,
        Content.unreferenced_at <= database_now(-grace),
        bundles.is_member(),
        ~bundles.is_held(Content.cid),
        ~_is_awaited(Content.cid),
    )


def _is_awaited(cid: bundles.CidColumn) -> ColumnElement[bool]:
    """Return the SQL condition that an unfinished pin will refer to the content."""
    return exists().where(
        Pin.cid == cid, Pin.status.in_((QUEUED, PINNING)), Pin.removed_at.is_(None)
    )
