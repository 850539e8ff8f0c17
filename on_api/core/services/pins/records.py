"""Pins that become pinned, one or hundreds of one user's at once: rows, counter, events. Their
references are counted by `content/recorder.py`."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from on_api.core.models import Content, Pin, UserUsage
from on_api.core.models.database import utc_now
from on_api.core.models.pin import PINNED_STATUS
from on_api.core.services.content.statements import NEW_EVENTS


@dataclass(frozen=True, slots=True)
class Fulfilled:
    """Pin whose content the node has pinned; `blocks` of its DAG, if known."""

    pin_id: uuid.UUID
    cid: str
    blocks: int | None


def mark_pinned(session: Session, usage: UserUsage, fulfilled: Sequence[Fulfilled]) -> None:
    """Mark pins as pinned, and end their leases. References were added; `usage` is locked."""
    # Most have one block, so one statement covers nearly all.
    by_blocks: defaultdict[int | None, list[uuid.UUID]] = defaultdict(list)
    for each in fulfilled:
        by_blocks[each.blocks].append(each.pin_id)
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
    tell_pinned(session, usage, [(each.pin_id, each.cid) for each in fulfilled])


def tell_pinned(
    session: Session, usage: UserUsage, pinned: Iterable[tuple[uuid.UUID, str]]
) -> None:
    """Count pins of a user, given by id and CID, and record their events."""
    now = utc_now()
    rows = [(usage.user_id, "pin.pinned", pin_id, {"cid": cid}, now) for pin_id, cid in pinned]
    usage.pinned_count += len(rows)
    NEW_EVENTS.execute(session.connection(), rows)
