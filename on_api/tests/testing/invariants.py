"""Invariants of database and node that hold whenever no work is under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from sqlalchemy import select

from on_api.core.models import Content, Database, Event, File, Holding, Pin, UserUsage
from on_api.core.models.content import PINNED


def check_invariants(database: Database, pins_on_node: Collection[str]) -> None:
    """Check that every reference is held and charged once, everything held is pinned, and every
    event was recorded once.

    `pins_on_node`: the CIDs of all recursive pins.
    """
    with database.session_scope(write=False) as session:
        pins = session.scalars(select(Pin)).all()
        files = session.scalars(select(File)).all()
        holdings = session.scalars(select(Holding)).all()
        contents = {content.cid: content for content in session.scalars(select(Content))}
        usages = session.scalars(select(UserUsage)).all()
        events = session.scalars(select(Event)).all()
    references = Counter(
        [(pin.user_id, pin.cid) for pin in pins if pin.status == "pinned"]
        + [(file.user_id, file.cid) for file in files]
    )
    assert {(h.user_id, h.cid): h.references for h in holdings} == references
    held = {holding.cid for holding in holdings}
    assert all(contents[cid].state == PINNED for cid in held)
    assert all(contents[cid].unreferenced_at is None for cid in held)
    assert {contents[cid].pin_root_id for cid in held} <= set(pins_on_node), "held but not pinned"
    for content in contents.values():
        if content.state != PINNED:
            assert content.pin_root_id == content.cid
        elif content.cid not in held:
            lives = any(
                other.pin_root_id == content.cid != other.cid for other in contents.values()
            )
            assert lives == (content.unreferenced_at is None)
    for usage in usages:
        own = [holding for holding in holdings if holding.user_id == usage.user_id]
        assert usage.storage_bytes == sum(holding.bytes for holding in own)
        assert usage.pinned_count == sum(
            pin.user_id == usage.user_id and pin.status == "pinned" and pin.removed_at is None
            for pin in pins
        )
        assert usage.reserved_bytes == 0
    for pin in pins:
        if pin.status in {"pinned", "failed"}:
            assert pin.lease_token is None
    told = Counter((event.subject_id, event.kind) for event in events)
    assert set(told.values()) <= {1}, "told twice"
    for pin in pins:
        ends = {kind for subject, kind in told if subject == pin.id} & {"pin.pinned", "pin.failed"}
        assert ends == ({f"pin.{pin.status}"} if pin.status in {"pinned", "failed"} else set())
