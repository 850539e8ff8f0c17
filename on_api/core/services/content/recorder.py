"""The one writer of references: which files and pins refer to which contents, who holds these, and
what each user is charged. One reference is a batch of one.

A batch is written in two steps, so that references that can't be recorded can be left out in
between: `lock_contents` inserts missing contents and locks all of them, `add_references` counts.
Locks are taken in the common order: a user's counters first, then contents by CID. Rows come by the
hundred, so these are plain statements; contents and holdings that the session has loaded must be
read again afterwards.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, bindparam, select, update
from sqlalchemy.orm import Session

from on_api.core.errors import ServiceUnavailable
from on_api.core.ipfs.formats.bundle import Bundle
from on_api.core.models import Content, Holding, UserUsage
from on_api.core.models.content import ABSENT, PINNED
from on_api.core.models.database import database_now, moment_of, table_of, utc_now
from on_api.core.models.invalidation import contents_changed
from on_api.core.services.content import bundles, contents
from on_api.core.services.content.contents import NotSecuredError
from on_api.core.services.content.leases import GIVEN_UP
from on_api.core.services.content.statements import (
    COUNTED_HOLDINGS,
    FILE_COLUMNS,
    LOCKED_CONTENTS,
    NEW_EVENTS,
    NEW_FILES,
)

Usages = Mapping[uuid.UUID, UserUsage]
"""Locked counters by user."""


@dataclass(frozen=True, slots=True)
class LockedContents:
    """Contents that are locked. `sizes`: bytes by CID of those that can be referred to;
    `unsecured`: those whose pin can't be relied on; `stamped`: those that were unreferenced until
    now. `members`: those covered by the `bundle` that was just stored."""

    sizes: Mapping[str, int]
    unsecured: Collection[str]
    stamped: Collection[str]
    members: Collection[str]
    bundle: Bundle | None

    def require_secured(self) -> None:
        """Raise `NotSecuredError` for the first content that can't be relied on."""
        if self.unsecured:
            raise NotSecuredError(min(self.unsecured))


def lock_contents(
    session: Session,
    sizes: Mapping[str, int],
    *,
    secured: Mapping[str, int] | None = None,
    own_pins: Collection[str] = (),
    bundle: Bundle | None = None,
    covered: Collection[str] = (),
) -> LockedContents:
    """Insert the rows of contents that are missing, and lock all in order of CID.

    `sizes`: bytes of each DAG. `secured`: generations under which `Keeper.secure` has made sure of
    pins. `own_pins`: contents that the node may have pinned for this, each by itself. `covered`:
    contents that a `bundle` links, which the node has pinned. Raises `ServiceUnavailable` when the
    bundle was removed as a crash's leftover.
    """
    root = "" if bundle is None else str(bundle.cid)
    wanted = dict(sizes) if bundle is None else {**sizes, root: bundle.dag_size}
    if not wanted:
        return LockedContents({}, (), (), (), bundle)
    now = utc_now()
    rows = [
        (cid, PINNED, 1, False, root if cid in covered else cid, wanted[cid], now)
        for cid in sorted(wanted)
    ]
    found = {row.cid: row for row in LOCKED_CONTENTS.execute(session.connection(), rows)}
    if bundle is not None and found.pop(root).state != PINNED:
        raise ServiceUnavailable(GIVEN_UP)
    generations = secured or {}
    back = {
        cid: root if cid in covered else cid
        for cid, row in found.items()
        # Removed before but in the bundle now, whatever became of its own pin.
        if row.state == ABSENT and (cid in covered or generations.get(cid) == row.generation)
    }
    _revive(session, back, sizes)
    there = {cid for cid, row in found.items() if row.state == PINNED or cid in back}
    # Such a pin may be gone by now, so the bundle still covers the content.
    in_bundles = {cid for cid in there - back.keys() if found[cid].pin_root_id != cid}
    _mark_pinned_too(session, in_bundles.intersection(own_pins))
    return LockedContents(
        sizes={cid: sizes[cid] if cid in back else found[cid].dag_size for cid in there},
        unsecured=found.keys() - there,
        stamped={cid for cid in there if found[cid].unreferenced_at is not None},
        members={c for c in there if root and (back.get(c) or found[c].pin_root_id) == root},
        bundle=bundle,
    )


def add_references(
    session: Session,
    usages: Usages,
    references: Mapping[tuple[uuid.UUID, str], int],
    locked: LockedContents,
) -> None:
    """Count references, given by user and CID, and charge their users: each content once."""
    rows = [
        (user_id, cid, count, locked.sizes[cid]) for (user_id, cid), count in references.items()
    ]
    if rows:
        charged = Counter[uuid.UUID]()
        users = {each.hex: each for each in usages}  # SQLite's driver tells ids by their digits
        for row in COUNTED_HOLDINGS.execute(session.connection(), rows):
            user_id = users[str(row.user_id).replace("-", "")]
            if row.reference_count == references[user_id, row.cid]:  # the holding is new
                charged[user_id] += row.charged_bytes
        for user_id, size in charged.items():
            usages[user_id].storage_bytes += size
    held = {cid for _, cid in references}
    _set_stamp(session, held.intersection(locked.stamped), None)
    if locked.bundle is None:
        return
    # Members whose file or pin could not be recorded.
    _set_stamp(session, set(locked.members) - held, database_now())
    if len(locked.members) < len(locked.bundle.blocks):
        bundle = contents.lock(session, str(locked.bundle.cid))
        if bundle is not None:
            bundles.look_through(session, bundle, moment_of(session))


def add_reference(
    session: Session,
    usage: UserUsage,
    cid: str,
    dag_size: int,
    secured: Mapping[str, int] | None = None,
    *,
    pinned_anew: bool = True,
) -> int:
    """Count one reference of a user to content that was seen pinned on the node. Returns the bytes
    of its DAG. `pinned_anew`: the node may have pinned it for this. Raises `NotSecuredError`."""
    own_pins = (cid,) if pinned_anew else ()
    locked = lock_contents(session, {cid: dag_size}, secured=secured, own_pins=own_pins)
    locked.require_secured()
    add_references(session, {usage.user_id: usage}, {(usage.user_id, cid): 1}, locked)
    return locked.sizes[cid]


def drop_references(session: Session, usage: UserUsage, cids: Iterable[str]) -> None:
    """Drop a user's references, one for each CID; the last of all references to a content stamps
    its `unreferenced_at`. Nothing is unpinned here; caches of these contents are invalidated."""
    dropped = Counter(cids)
    if not dropped:
        return
    session.flush()
    contents_changed(session, *dropped)
    locked = contents.lock_all(session, dropped)
    for cid, count in sorted(dropped.items()):
        holding = session.get_one(Holding, (usage.user_id, cid), populate_existing=True)
        if holding.references > count:
            holding.references -= count
            continue
        usage.storage_bytes -= holding.bytes
        session.delete(holding)
        session.flush()
        content = locked.get(cid)
        if content is not None and not session.scalar(select(bundles.is_held(cid))):
            content.unreferenced_at = database_now()


def record_files(session: Session, usages: Usages, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert files, in the order of their `created_at`; missing columns are null. Their references
    are counted by `add_references`."""
    if not rows:
        return
    connection = session.connection()
    NEW_FILES.execute(connection, [[row.get(name) for name in FILE_COLUMNS] for row in rows])
    NEW_EVENTS.execute(
        connection,
        [
            (row["user_id"], "file.created", row["id"], {"cid": row["cid"]}, row["created_at"])
            for row in rows
        ],
    )
    for user_id, count in Counter(row["user_id"] for row in rows).items():
        usages[user_id].file_count += count


def _revive(session: Session, roots: Mapping[str, str], sizes: Mapping[str, int]) -> None:
    """Set removed contents to pinned again, under the root that covers them now."""
    if not roots:
        return
    table = table_of(Content)
    session.connection().execute(
        update(table)
        .where(table.c.cid == bindparam("revived"))
        .values(
            state=PINNED,
            pin_root_id=bindparam("root"),
            pinned_too=False,
            dag_size=bindparam("size"),
            unreferenced_at=None,
        ),
        [{"revived": cid, "root": root, "size": sizes[cid]} for cid, root in sorted(roots.items())],
    )


def _mark_pinned_too(session: Session, cids: Collection[str]) -> None:
    if cids:
        table = table_of(Content)
        marked = update(table).where(table.c.cid.in_(cids)).values(pinned_too=True)
        session.connection().execute(marked)


def _set_stamp(
    session: Session, cids: Collection[str], value: ColumnElement[datetime] | None
) -> None:
    if cids:
        table = table_of(Content)
        stamped = update(table).where(table.c.cid.in_(cids)).values(unreferenced_at=value)
        session.connection().execute(stamped)
