"""What the files of a bundle, or pins that are recorded together, refer to: rows of contents,
locked, and who holds them.

By the hundred, so plain statements. Knows nothing of uploads and pins.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, bindparam, update
from sqlalchemy.orm import Session

from on_api.core.errors import ServiceUnavailable
from on_api.core.ipfs.formats.bundle import Bundle
from on_api.core.models import Content
from on_api.core.models.content import ABSENT, PINNED
from on_api.core.models.database import database_now, moment_of, table_of, utc_now
from on_api.core.services.content import bundles, contents
from on_api.core.services.content.leases import GIVEN_UP
from on_api.core.services.content.statements import COUNTED_HOLDINGS, LOCKED_CONTENTS


@dataclass(slots=True)
class Members:
    """What may be referred to, locked: bytes by CID. `members`: those that the new bundle covers.
    `elsewhere`: those that live in another one. `stamped`: those that nobody held."""

    sizes: dict[str, int]
    members: set[str]
    elsewhere: set[str]
    stamped: set[str]


def lock_contents(
    session: Session, wanted: Mapping[str, int], bundle: Bundle | None, covered: Collection[str]
) -> Members:
    """Make the rows that are missing and lock all, in order of CID. `wanted`: bytes of each DAG by
    its CID; `covered`: what the bundle links. Raises `ServiceUnavailable` when the bundle was taken
    for what a crash had left."""
    now = utc_now()
    root = "" if bundle is None else str(bundle.cid)
    sizes = dict(wanted)
    if bundle is not None:
        sizes[root] = bundle.dag_size
    rows = [
        (cid, PINNED, 1, False, root if cid in covered else cid, sizes[cid], now)
        for cid in sorted(sizes)
    ]
    if not rows:
        return Members({}, set(), set(), set())
    locked = LOCKED_CONTENTS.execute(session.connection(), rows)
    found = {row.cid: row for row in locked}
    if bundle is not None and found.pop(root).state != PINNED:
        raise ServiceUnavailable(GIVEN_UP)  # taken for what a crash had left
    # What was removed before lives in the bundle now, whatever became of its own pin.
    back = {cid for cid, row in found.items() if row.state == ABSENT and cid in covered}
    if back:
        _revive(session, root, {cid: sizes[cid] for cid in back})
    usable = {
        cid: sizes[cid] if cid in back else row.dag_size
        for cid, row in found.items()
        if row.state == PINNED or cid in back
    }
    members = {cid for cid in usable if cid in back or found[cid].pin_root_id == root}
    elsewhere = {cid for cid in usable if found[cid].pin_root_id != cid} - members
    stamped = {cid for cid in usable if found[cid].unreferenced_at is not None}
    return Members(usable, members, elsewhere, stamped)


def _revive(session: Session, root: str, sizes: dict[str, int]) -> None:
    table = table_of(Content)
    session.connection().execute(
        update(table)
        .where(table.c.cid == bindparam("member"))
        .values(
            state=PINNED,
            pin_root_id=root,
            pinned_too=False,
            dag_size=bindparam("size"),
            unreferenced_at=None,
        ),
        [{"member": cid, "size": size} for cid, size in sorted(sizes.items())],
    )


def hold(
    session: Session, references: Mapping[tuple[uuid.UUID, str], int], there: Members
) -> dict[tuple[uuid.UUID, str], int]:
    """Count references, so many by user and CID. Returns what each holding, new or old, adds to its
    user's charge."""
    if not references:
        return {}
    rows = [(user_id, cid, count, there.sizes[cid]) for (user_id, cid), count in references.items()]
    added = {}
    for row in COUNTED_HOLDINGS.execute(session.connection(), rows):
        holding = uuid.UUID(str(row.user_id)), row.cid
        is_new = row.reference_count == references[holding]
        added[holding] = row.charged_bytes if is_new else 0
    return added


def stamp(session: Session, bundle: Bundle | None, there: Members, held: Collection[str]) -> None:
    """`unreferenced_at` stands just where nobody holds it."""
    if again := there.stamped & set(held):
        _set_stamp(session, again, None)
    if bundle is None:
        return
    # What some of it was for could not go with the others.
    if idle := there.members - set(held):
        _set_stamp(session, idle, database_now())
    if len(there.members) < len(bundle.blocks):
        row = contents.lock(session, str(bundle.cid))
        if row is not None:
            bundles.look_through(session, row, moment_of(session))


def _set_stamp(
    session: Session, cids: Collection[str], value: ColumnElement[datetime] | None
) -> None:
    session.execute(
        update(Content)
        .where(Content.cid.in_(cids))
        .values(unreferenced_at=value)
        .execution_options(synchronize_session=False)
    )
