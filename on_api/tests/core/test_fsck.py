"""`fsck` finds each thing that can be wrong between database and node, mends what can be mended,
and leaves other people's pins alone."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import make_transient

from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.ipfs.port import IpfsNode
from on_api.core.models import (
    AuditEvent,
    Content,
    Event,
    File,
    Holding,
    Identity,
    Lease,
    LeasedPin,
    QuarantinedPin,
    User,
    UserUsage,
)
from on_api.core.models.content import ABSENT, UNPINNING
from on_api.core.models.database import utc_now
from on_api.core.models.file import FOR_OWNER
from on_api.core.services.accounts.audit import COMMAND_LINE
from on_api.core.services.container import Services
from on_api.core.services.upkeep.fsck.findings import FindingKind, FsckReport
from on_api.core.services.upkeep.fsck.ledger import check_ledger
from on_api.core.services.upkeep.node import connect_node
from on_api.tests.conftest import Account, Kubo, Server
from on_api.tests.testing.blockstore import Blockstore

MIB = 1024 * 1024


def fsck(server: Server, *, repair: bool = False, now: bool = False) -> FsckReport:
    """One run, on connections of its own."""

    async def run() -> FsckReport:
        services = Services.build(server.settings, connect_node(server.settings))
        try:
            return await services.fsck.run(repair=repair, walk=True, now=now)
        finally:
            await services.close()

    return asyncio.run(run())


def on_node(server: Server, work: Callable[[IpfsNode], object]) -> object:
    """Something done at the node, past on-api."""

    async def run() -> object:
        async with connect_node(server.settings) as node:
            return await work(node)  # type: ignore[misc]

    return asyncio.run(run())


def troubles(report: FsckReport) -> set[tuple[FindingKind, str]]:
    """What is wrong, without what is only told."""
    return {(finding.kind, finding.subject) for finding in report.findings if finding.is_trouble}


def leaf_of(data: bytes) -> str:
    """The CID of a file's first leaf."""
    return build_file(data).children[0].cid


def test_a_life_without_accidents_is_clean(own: Server, user: Account) -> None:
    """Files and pins, some deleted: nothing to find, every block read."""
    data = os.urandom(3 * MIB)
    kept = user.upload(data)
    gone = user.upload(os.urandom(1000))
    assert user.client.delete(f"/v1/files/{gone['id']}").status_code == 204
    user.client.post("/v1/pins", json={"cid": kept["cid"]})
    report = fsck(own)
    assert report.clean, report.findings
    assert report.contents == 2
    assert report.blocks == 3 + 1 + 1
    assert report.bytes > len(data)


def test_a_missing_pin_is_pinned_again(own: Server, user: Account) -> None:
    """As long as the blocks are there."""
    cid = str(user.upload(os.urandom(2 * MIB))["cid"])
    on_node(own, lambda node: node.unpin(cid))
    assert troubles(fsck(own)) == {(FindingKind.MISSING_PIN, cid)}
    assert fsck(own, repair=True).clean
    assert on_node(own, lambda node: node.pin_status(cid)) is not None
    assert fsck(own).clean


def test_a_hole_in_a_dag_is_found(own: Server, user: Account, kubo: Kubo) -> None:
    """By its own CID; without a peer that has the block it can't be mended, and that is said."""
    data = os.urandom(3 * MIB)
    cid, leaf = str(user.upload(data)["cid"]), leaf_of(data)
    Blockstore(kubo.home / "ipfs").take(leaf)
    report = fsck(own, repair=True)
    assert troubles(report) == {(FindingKind.DAMAGED_DAG, cid)}
    assert any(leaf in finding.details for finding in report.findings)


def test_a_block_that_was_altered_is_found(own: Server, user: Account, kubo: Kubo) -> None:
    """Kubo itself would serve it: only the hash tells."""
    data = os.urandom(2 * MIB)
    cid, leaf = str(user.upload(data)["cid"]), leaf_of(data)
    blocks = Blockstore(kubo.home / "ipfs")
    saved = blocks.take(leaf)
    blocks.put(leaf, bytes([saved[0] ^ 1]) + saved[1:])
    assert troubles(fsck(own)) == {(FindingKind.DAMAGED_DAG, cid)}
    blocks.put(leaf, saved)


def test_only_our_orphans_are_removed(own: Server, user: Account) -> None:
    """A pin by our name whose upload is dead goes; one in flight and other people's stay."""
    cids = [str(user.upload(os.urandom(1000 + number))["cid"]) for number in range(3)]
    services = own.services
    with services.database.session_scope() as session:
        session.execute(delete(File))
        session.execute(delete(Holding))
        session.execute(delete(Content))
        session.execute(update(UserUsage).values(file_count=0, storage_bytes=0))
        alive = Lease(kind="upload", lease_until=utc_now() + timedelta(minutes=5))
        session.add(alive)
        session.flush()
        alive_id = alive.id
    names = [services.names.of(uuid.uuid4()), services.names.of(alive_id), "somebody else's"]

    async def rename(node: IpfsNode) -> None:
        for cid, name in zip(cids, names, strict=True):
            await node.unpin(cid)
            await node.pin(cid, name=name, fetch=False)

    on_node(own, rename)
    orphan, _, foreign = cids
    assert troubles(fsck(own)) == {(FindingKind.ORPHAN_PIN, orphan)}
    report = fsck(own, repair=True, now=True)
    assert report.clean
    assert foreign in {f.subject for f in report.findings if f.kind is FindingKind.FOREIGN_PIN}
    pinned = [on_node(own, lambda node, cid=cid: node.pin_status(cid)) for cid in cids]  # type: ignore[misc]
    assert [pin is not None for pin in pinned] == [False, True, True]
    # What was an orphan can be somebody's again.
    with services.database.session_scope(write=False) as session:
        assert session.get_one(Content, orphan).state == ABSENT


def test_counters_and_holdings_are_counted_anew(own: Server, user: Account) -> None:
    """Each wrong one is told with what it says and what it is."""
    files = [user.upload(os.urandom(2000)) for _ in range(3)]
    user.client.post("/v1/pins", json={"cid": files[0]["cid"]})
    lost, doubled = str(files[1]["cid"]), str(files[2]["cid"])
    with own.services.database.session_scope() as session:
        session.execute(delete(Holding).where(Holding.cid == lost))
        session.execute(update(Holding).where(Holding.cid == doubled).values(references=7))
        session.execute(update(UserUsage).values(file_count=9, storage_bytes=1, pinned_count=5))
    found = fsck(own)
    assert {subject for kind, subject in troubles(found) if kind is FindingKind.WRONG_COUNT} >= {
        lost,
        doubled,
        user.id,
    }
    assert fsck(own, repair=True).clean
    assert fsck(own).clean
    usage = user.client.get("/v1/users/me/usage").json()
    assert usage["storage"]["bytes"] == 6000
    assert user.client.get("/v1/files").json()["count"] == 3
    assert user.client.get("/v1/pins").json()["count"] == 1


def test_states_that_contradict_their_references(own: Server, user: Account) -> None:
    """What is held is pinned again; what is not held will be freed; an undone removal is done."""
    held, unstamped, undone = (str(user.upload(os.urandom(3000))["cid"]) for _ in range(3))
    for file in user.client.get("/v1/files").json()["items"]:
        if file["cid"] != held:
            user.client.delete(f"/v1/files/{file['id']}")
    past = utc_now() - timedelta(hours=1)
    with own.services.database.session_scope() as session:
        session.execute(update(Content).where(Content.cid == held).values(state=ABSENT))
        session.execute(
            update(Content).where(Content.cid == unstamped).values(unreferenced_at=None)
        )
        session.execute(
            update(Content)
            .where(Content.cid == undone)
            .values(state=UNPINNING, lease_until=past, lease_token=uuid.uuid4())
        )
    on_node(own, lambda node: node.unpin(held))
    assert troubles(fsck(own)) == {
        (FindingKind.WRONG_STATE, held),
        (FindingKind.WRONG_STATE, unstamped),
        (FindingKind.DEAD_LEASE, undone),
    }
    assert fsck(own, repair=True).clean
    assert fsck(own).clean
    assert on_node(own, lambda node: node.pin_status(held)) is not None
    assert on_node(own, lambda node: node.pin_status(undone)) is None
    with own.services.database.session_scope(write=False) as session:
        assert session.get_one(Content, unstamped).unreferenced_at is not None


def test_dead_leases_give_back_what_they_reserved(own: Server, user: Account) -> None:
    """Of an upload that a crash has ended."""
    with own.services.database.session_scope() as session:
        user_id = session.scalars(select(User.id)).one()
        session.add(
            Lease(
                kind="upload",
                user_id=user_id,
                lease_until=utc_now() - timedelta(hours=1),
                reserved_bytes=500,
            )
        )
        session.execute(update(UserUsage).values(reserved_bytes=500))
    assert {kind for kind, _ in troubles(fsck(own))} == {FindingKind.DEAD_LEASE}
    assert fsck(own, repair=True).clean
    with own.services.database.session_scope(write=False) as session:
        assert session.scalars(select(UserUsage.reserved_bytes)).one() == 0
        assert session.scalars(select(Lease.id)).all() == []


def dead_lease(own: Server, *listed: str) -> uuid.UUID:
    """One that died an hour ago, and lists what its work has left."""
    with own.services.database.session_scope() as session:
        lease = Lease(kind="left", lease_until=utc_now() - timedelta(hours=1))
        session.add(lease)
        session.flush()
        session.add_all(LeasedPin(lease_id=lease.id, cid=cid) for cid in listed)
        return lease.id


def test_a_lease_that_lists_pins_stays(own: Server, user: Account) -> None:
    """Nothing else tells of them. What a repair removes is listed no more; the rest is the
    worker's."""
    mine, others = unknown_pin(own, user), unknown_pin(own, user)
    lease_id, waiting = dead_lease(own, mine), dead_lease(own, others)

    async def rename(node: IpfsNode) -> None:
        await node.unpin(mine)
        await node.pin(mine, name=own.services.names.of(lease_id), fetch=False)

    on_node(own, rename)
    assert troubles(fsck(own, repair=True)) == {(FindingKind.DEAD_LEASE, str(waiting))}
    assert [is_pinned(own, cid) for cid in (mine, others)] == [False, True]
    with own.services.database.session_scope(write=False) as session:
        assert session.scalars(select(Lease.id)).all() == [waiting]
        assert session.scalars(select(LeasedPin.cid)).all() == [others]


def test_a_lease_that_lives_again_stays(own: Server) -> None:
    """Its owner was asleep, and has renewed it since it was found to be dead."""
    ids = {str(dead_lease(own)) for _ in range(2)}
    findings = check_ledger(own.services.database, repair=True)
    ids.remove(next(findings).subject)
    with own.services.database.session_scope() as session:
        session.execute(update(Lease).values(lease_until=utc_now() + timedelta(minutes=1)))
    assert list(findings) == []
    with own.services.database.session_scope(write=False) as session:
        assert {str(lease_id) for lease_id in session.scalars(select(Lease.id))} == ids


def unknown_pin(own: Server, user: Account) -> str:
    """A pin by a name of ours, as one that was made after the backup that the database is."""
    cid = str(user.upload(os.urandom(2500))["cid"])
    with own.services.database.session_scope() as session:
        session.execute(delete(File).where(File.cid == cid))
        session.execute(delete(Holding).where(Holding.cid == cid))
        session.execute(delete(Content).where(Content.cid == cid))
        left = select(func.count()).select_from(File).scalar_subquery()
        size = select(func.coalesce(func.sum(Holding.bytes), 0)).scalar_subquery()
        session.execute(update(UserUsage).values(file_count=left, storage_bytes=size))
    return cid


def first_sights(own: Server) -> dict[str, datetime]:
    """What is in quarantine, by CID."""
    with own.services.database.session_scope(write=False) as session:
        found = session.scalars(select(QuarantinedPin)).all()
        return {each.cid: each.first_seen_at for each in found}


def is_pinned(own: Server, cid: str) -> bool:
    """At the node."""
    return on_node(own, lambda node: node.pin_status(cid)) is not None


def pass_time(own: Server, by: timedelta) -> None:
    """As if everything in quarantine had been seen so much earlier."""
    with own.services.database.session_scope() as session:
        for each in session.scalars(select(QuarantinedPin)):
            each.first_seen_at -= by


def test_a_database_that_is_older_than_the_node(own: Server, user: Account) -> None:
    """What it doesn't know is told and left, until it is seen again a day later."""
    cid = unknown_pin(own, user)
    assert troubles(fsck(own)) == {(FindingKind.ORPHAN_PIN, cid)}
    [seen] = first_sights(own).values()
    for _ in range(2):
        report = fsck(own, repair=True)
        [finding] = [each for each in report.findings if each.subject == cid]
        assert (finding.mended, finding.deferred) == (False, True)
        assert finding.due_at == seen + timedelta(days=1)
        assert (seen + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%S") in finding.details
        assert report.deferred == 1
        assert is_pinned(own, cid)
    assert first_sights(own) == {cid: seen}
    pass_time(own, timedelta(days=1))
    assert troubles(fsck(own)) == {(FindingKind.ORPHAN_PIN, cid)}
    assert is_pinned(own, cid)  # only a repair ends it
    assert fsck(own, repair=True).clean
    assert not is_pinned(own, cid)
    assert first_sights(own) == {}


def test_what_is_somebodys_again_leaves_quarantine(own: Server, user: Account) -> None:
    """A row comes: by the right database, or by the same bytes. Gone and back it begins anew."""
    data = os.urandom(2600)
    cid, other = str(user.upload(data)["cid"]), unknown_pin(own, user)
    with own.services.database.session_scope() as session:
        kept = session.get_one(Content, cid)
        session.expunge(kept)
        holding = session.scalars(select(Holding).where(Holding.cid == cid)).one()
        session.expunge(holding)
        file = session.scalars(select(File).where(File.cid == cid)).one()
        session.expunge(file)
        session.execute(delete(File))
        session.execute(delete(Holding))
        session.execute(delete(Content))
    fsck(own, repair=True)
    assert set(first_sights(own)) == {cid, other}
    with own.services.database.session_scope() as session:
        for row in (kept, holding, file):
            make_transient(row)
        session.add(kept)
        session.flush()
        session.add_all((holding, file))
    fsck(own, repair=True)
    assert set(first_sights(own)) == {other}
    pass_time(own, timedelta(days=2))
    assert fsck(own, repair=True).clean
    assert not is_pinned(own, other)
    assert user.client.get(f"/v1/files/{file.id}/content").content == data


def test_a_pin_of_other_work_begins_its_quarantine_anew(own: Server, user: Account) -> None:
    """What was seen long ago was another pin."""
    cid = unknown_pin(own, user)
    fsck(own, repair=True)
    pass_time(own, timedelta(days=30))
    name = own.services.names.of(uuid.uuid4())

    async def rename(node: IpfsNode) -> None:
        await node.unpin(cid)
        await node.pin(cid, name=name, fetch=False)

    on_node(own, rename)
    assert fsck(own, repair=True).deferred == 1
    assert is_pinned(own, cid)


def test_a_lease_that_is_long_dead_proves_nothing(own: Server, user: Account) -> None:
    """One that has just died tells of its pins; in a backup it was alive, and went on."""
    fresh, old = unknown_pin(own, user), unknown_pin(own, user)
    leases = {}
    with own.services.database.session_scope() as session:
        for cid, minutes in ((fresh, 1), (old, 60)):
            lease = Lease(kind="upload", lease_until=utc_now() - timedelta(minutes=minutes))
            session.add(lease)
            session.flush()
            leases[cid] = lease.id

    async def rename(node: IpfsNode) -> None:
        for cid, lease_id in leases.items():
            await node.unpin(cid)
            await node.pin(cid, name=own.services.names.of(lease_id), fetch=False)

    on_node(own, rename)
    report = fsck(own, repair=True)
    assert report.clean
    assert report.deferred == 1
    assert [is_pinned(own, cid) for cid in (fresh, old)] == [False, True]


def lose(own: Server, kubo: Kubo, data: bytes, cid: str) -> None:
    """The node has lost it: an older one was put in its place."""
    on_node(own, lambda node: node.unpin(cid))
    Blockstore(kubo.home / "ipfs").take(leaf_of(data) if len(data) > MIB else cid)


def collected(server: Server) -> str:
    """How a collection ends."""

    async def run() -> str:
        services = Services.build(server.settings, connect_node(server.settings))
        try:
            return (await services.garbage.collect(5)).outcome
        finally:
            await services.close()

    return asyncio.run(run())


def losses(server: Server, *, drop: bool = False, wait: Callable[[], None] | None = None) -> Any:
    """What is lost; with `drop` what was dropped of it, after `wait`."""

    async def run() -> Any:
        services = Services.build(server.settings, connect_node(server.settings))
        try:
            report = await services.fsck.run(repair=True, walk=True)
            found = await services.fsck.losses(report)
            if not drop:
                return found
            if wait is not None:
                await asyncio.to_thread(wait)
            return await services.fsck.drop_lost(found, COMMAND_LINE)
        finally:
            await services.close()

    return asyncio.run(run())


def test_a_node_that_is_older_than_the_database(own: Server, user: Account, kubo: Kubo) -> None:
    """What it has lost is listed with whose it is, and dropped: then all agrees, and garbage can be
    collected again."""
    data, whole = os.urandom(2 * MIB), os.urandom(1000)
    lost = user.upload(data, "lost")
    kept = user.upload(whole, "kept")
    user.client.post("/v1/pins", json={"cid": lost["cid"], "name": "pinned too"})
    shared = user.client.post("/v1/shares", json={"file_id": lost["id"]})
    assert shared.status_code == 201, shared.text
    lose(own, kubo, data, str(lost["cid"]))
    assert collected(own) == "unsafe"
    [loss] = losses(own)
    assert loss.cid == lost["cid"]
    told = [(each.kind, each.username, each.name, each.shares) for each in loss.references]
    assert told == [("file", user.username, "lost", 1), ("pin", user.username, "pinned too", 0)]
    assert user.client.get("/v1/files").json()["count"] == 2  # nothing is dropped by looking
    [dropped] = losses(own, drop=True)
    assert dropped.cid == lost["cid"]
    files = user.client.get("/v1/files").json()["items"]
    assert [file["id"] for file in files] == [kept["id"]]
    assert user.client.get("/v1/pins").json()["count"] == 0
    assert user.client.get("/v1/users/me/usage").json()["storage"]["bytes"] == len(whole)
    assert fsck(own).clean
    assert collected(own) == "collected"
    with own.services.database.session_scope(write=False) as session:
        told_to_owner = set(session.scalars(select(Event.kind)))
        entry = session.scalars(
            select(AuditEvent).where(AuditEvent.action == "content.drop_lost")
        ).one()
    assert {"file.lost", "file.deleted", "pin.lost", "pin.removed"} <= told_to_owner
    assert entry.details["cid"] == lost["cid"]
    assert entry.details["files"] == [lost["id"]]
    # The same bytes are welcome again.
    assert user.upload(data, "back")["cid"] == lost["cid"]
    assert fsck(own).clean


def test_what_comes_back_before_it_is_dropped_stays(own: Server, user: Account, kubo: Kubo) -> None:
    """The list was true when it was made."""
    data = os.urandom(2 * MIB)
    lost = user.upload(data, "lost")
    lose(own, kubo, data, str(lost["cid"]))

    def send_again() -> None:
        user.upload(data, "again")

    assert losses(own, drop=True, wait=send_again) == []
    assert user.client.get("/v1/files").json()["count"] == 2
    assert user.client.get(f"/v1/files/{lost['id']}/content").content == data
    assert fsck(own).clean


def test_a_private_file_that_can_not_be_opened(own: Server, user: Account) -> None:
    """Its row has lost its header, or its identity: that is not clean. The header is read again."""
    private = [user.upload(b"secret %d" % n, f"{n}", visibility="private") for n in range(3)]
    assert fsck(own).clean
    with own.services.database.session_scope() as session:
        mine = update(File).where(File.id == uuid.UUID(str(private[0]["id"])))
        empty = dict.fromkeys(("sealed_for", "identity_id", "sealed_size", "sealed_start"))
        session.execute(mine.values(**empty))
        mine = update(File).where(File.id == uuid.UUID(str(private[1]["id"])))
        session.execute(mine.values(identity_id=uuid.uuid4()))
    closed = {(FindingKind.CLOSED_FILE, str(each["id"])) for each in private[:2]}
    assert troubles(fsck(own)) == closed
    assert fsck(own, repair=True).clean
    for number, file in enumerate(private):
        answer = user.client.get(f"/v1/files/{file['id']}/content")
        assert answer.content == b"secret %d" % number
    with own.services.database.session_scope() as session:
        session.execute(delete(Identity))
    lost = {(FindingKind.CLOSED_FILE, str(each["id"])) for each in private}
    assert troubles(fsck(own)) == lost
    assert troubles(fsck(own, repair=True)) == lost
    with own.services.database.session_scope(write=False) as session:
        # It is not called somebody else's for that.
        assert set(session.scalars(select(File.sealed_for))) == {FOR_OWNER}
