"""`fsck` finds each thing that can be wrong between database and node, mends what can be mended,
and leaves other people's pins alone."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from sqlalchemy import delete, select, update

from on_api.core.ipfs.client import IpfsNode
from on_api.core.ipfs.unixfs import build_file
from on_api.core.models import Content, File, Holding, Lease, User, UserUsage
from on_api.core.models.content import ABSENT, UNPINNING
from on_api.core.models.database import utc_now
from on_api.core.services.container import Services
from on_api.core.services.fsck.findings import Kind, Report
from on_api.core.services.node import connect_node
from on_api.core.setting_groups import WorkerSettings
from on_api.core.settings import Settings
from on_api.tests.blockstore import Blockstore
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server

MIB = 1024 * 1024


@pytest.fixture
def own(new_database: DatabaseMaker, settings_for: Callable[..., Settings]) -> Iterator[Server]:
    """A server without a worker that would mend things first."""
    settings = settings_for(new_database(), worker=WorkerSettings(embedded=False))
    with Server(settings) as running:
        yield running


@pytest.fixture
def user(own: Server) -> Iterator[Account]:
    """Somebody there."""
    account = own.new_user()
    with account.client:
        yield account


def fsck(server: Server, *, repair: bool = False) -> Report:
    """One run, on connections of its own."""

    async def run() -> Report:
        services = Services.build(server.settings, connect_node(server.settings))
        try:
            return await services.fsck.run(repair=repair, walk=True)
        finally:
            await services.close()

    return asyncio.run(run())


def on_node(server: Server, work: Callable[[IpfsNode], object]) -> object:
    """Something done at the node, past on-api."""

    async def run() -> object:
        async with connect_node(server.settings) as node:
            return await work(node)  # type: ignore[misc]

    return asyncio.run(run())


def troubles(report: Report) -> set[tuple[Kind, str]]:
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
    assert troubles(fsck(own)) == {(Kind.MISSING_PIN, cid)}
    assert fsck(own, repair=True).clean
    assert on_node(own, lambda node: node.pin_status(cid)) is not None
    assert fsck(own).clean


def test_a_hole_in_a_dag_is_found(own: Server, user: Account, kubo: Kubo) -> None:
    """By its own CID; without a peer that has the block it can't be mended, and that is said."""
    data = os.urandom(3 * MIB)
    cid, leaf = str(user.upload(data)["cid"]), leaf_of(data)
    Blockstore(kubo.home / "ipfs").take(leaf)
    report = fsck(own, repair=True)
    assert troubles(report) == {(Kind.DAMAGED_DAG, cid)}
    assert any(leaf in finding.details for finding in report.findings)


def test_a_block_that_was_altered_is_found(own: Server, user: Account, kubo: Kubo) -> None:
    """Kubo itself would serve it: only the hash tells."""
    data = os.urandom(2 * MIB)
    cid, leaf = str(user.upload(data)["cid"]), leaf_of(data)
    blocks = Blockstore(kubo.home / "ipfs")
    saved = blocks.take(leaf)
    blocks.put(leaf, bytes([saved[0] ^ 1]) + saved[1:])
    assert troubles(fsck(own)) == {(Kind.DAMAGED_DAG, cid)}
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
    assert troubles(fsck(own)) == {(Kind.ORPHAN_PIN, orphan)}
    report = fsck(own, repair=True)
    assert report.clean
    assert foreign in {f.subject for f in report.findings if f.kind is Kind.FOREIGN_PIN}
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
    assert {subject for kind, subject in troubles(found) if kind is Kind.WRONG_COUNT} >= {
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
        (Kind.WRONG_STATE, held),
        (Kind.WRONG_STATE, unstamped),
        (Kind.DEAD_LEASE, undone),
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
    assert {kind for kind, _ in troubles(fsck(own))} == {Kind.DEAD_LEASE}
    assert fsck(own, repair=True).clean
    with own.services.database.session_scope(write=False) as session:
        assert session.scalars(select(UserUsage.reserved_bytes)).one() == 0
        assert session.scalars(select(Lease.id)).all() == []
