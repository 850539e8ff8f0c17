"""The end of many pins of one user in one transaction, when the node has pinned all of them.

Rows by the hundred, so plain statements.

What can't go with the others is left out: `pin_jobs.finish` says what becomes of it.
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from on_api.core.errors import InsufficientFunds, Unauthorized
from on_api.core.ipfs.port import DagStat
from on_api.core.models import Content, Pin, UserUsage
from on_api.core.models.database import utc_now
from on_api.core.models.pin import PINNED_STATUS
from on_api.core.services.content import contents
from on_api.core.services.content.bulk import hold, lock_contents, stamp
from on_api.core.services.content.statements import NEW_EVENTS
from on_api.core.services.pins.jobs import Claim


def finish_all(
    session: Session, claims: Sequence[Claim], stats: Mapping[uuid.UUID, DagStat]
) -> set[uuid.UUID]:
    """Make these pins references, as `pin_jobs.finish` does with each. Returns those that are.

    `claims` are one user's, each of another CID; `stats` by pin. Left out are those that were lost
    or removed, replace others, or whose content is covered by a bundle or can't be relied on.
    Raises `InsufficientFunds` when all of them together are more than the quota allows.
    """
    try:
        usage = contents.lock_usage(session, claims[0].user_id)
    except Unauthorized:  # deleted meanwhile, and the pins with it
        return set()
    fit = _lock_pins(session, claims)
    there = lock_contents(session, {claim.cid: stats[claim.id].size for claim in fit}, None, ())
    fit = [c for c in fit if c.cid in there.sizes and c.cid not in there.elsewhere]
    if not fit:
        return set()
    _charge(session, usage, hold(session, Counter((c.user_id, c.cid) for c in fit), there))
    usage.pinned_count += len(fit)
    stamp(session, None, there, {claim.cid for claim in fit})
    _mark_pinned(session, fit, stats)
    return {claim.id for claim in fit}


def _lock_pins(session: Session, claims: Sequence[Claim]) -> list[Claim]:
    """Lock all that are still ours, in the order that all keep who lock several; those that end
    like most pins do."""
    ids = [claim.id for claim in claims]
    found = session.execute(
        select(Pin.id, Pin.lease_token)
        .where(Pin.id.in_(ids), Pin.removed_at.is_(None))
        .order_by(Pin.id)
        .with_for_update()
    )
    token_of = dict(found.all())
    replacing = set(session.scalars(select(Pin.kept_for).where(Pin.kept_for.in_(ids))))
    return [
        claim
        for claim in claims
        if token_of.get(claim.id) == claim.token and claim.id not in replacing
    ]


def _charge(
    session: Session, usage: UserUsage, charged: Mapping[tuple[uuid.UUID, str], int]
) -> None:
    added = sum(charged.values())
    usage.storage_bytes += added
    room = contents.room_of(session, usage)
    if room is not None and room < 0 and added:
        raise InsufficientFunds


def _mark_pinned(
    session: Session, claims: Sequence[Claim], stats: Mapping[uuid.UUID, DagStat]
) -> None:
    """As `pins.mark_pinned`. Most have one block, so one statement does for nearly all."""
    by_blocks: defaultdict[int | None, list[uuid.UUID]] = defaultdict(list)
    for claim in claims:
        by_blocks[stats[claim.id].blocks or None].append(claim.id)
    size = select(Content.dag_size).where(Content.cid == Pin.cid).correlate(Pin).scalar_subquery()
    for blocks, ids in by_blocks.items():
        session.execute(
            update(Pin)
            .where(Pin.id.in_(ids))
            .values(
                status=PINNED_STATUS,
                dag_size=size,
                blocks=blocks,
                details=None,
                lease_token=None,
                lease_until=None,
            )
            .execution_options(synchronize_session=False)
        )
    now = utc_now()
    NEW_EVENTS.execute(
        session.connection(),
        [(claim.user_id, "pin.pinned", claim.id, {"cid": claim.cid}, now) for claim in claims],
    )
