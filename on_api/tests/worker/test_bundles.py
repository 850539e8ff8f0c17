"""Small uploads that come together: one bundle, one pin, one transaction; and everything that may
become of them after."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from sqlalchemy import delete, select, update

from on_api.core.errors import NodeError, QuotaExceeded, Unauthorized
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.ipfs.formats.dag import DAG_CBOR
from on_api.core.models import Content, Lease, User
from on_api.core.models.content import ABSENT, UNPINNING
from on_api.core.models.database import utc_now
from on_api.core.services.container import Services
from on_api.core.services.content import maintenance, standing_lease
from on_api.core.services.files.files import FileFacts
from on_api.core.services.upkeep.fsck.findings import FindingKind, FsckReport
from on_api.core.setting_groups import GcSettings, WorkerSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.blockstore import Blockstore
from on_api.tests.testing.bundles import (
    AT_ONCE,
    beside,
    bundle,
    collect,
    content,
    free,
    pins,
    root_of,
    upload,
)
from on_api.tests.testing.invariants import check_invariants
from on_api.tests.testing.plain_http import NO_TLS
from on_api.tests.testing.rpc_proxy import RpcProxy, held_rpc


@pytest.fixture(scope="module")
def calm(
    new_database: DatabaseMaker, kubo: Kubo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server whose worker does nothing by itself."""
    settings = make_settings(
        tmp_path_factory.mktemp("home"),
        new_database(),
        ipfs=kubo.ipfs,
        gc=GcSettings(interval=0, grace=0),
        worker=WorkerSettings(embedded=False, lease_seconds=5),
    )
    with Server(settings) as running:
        yield running


@pytest.fixture
def user(calm: Server) -> Iterator[Account]:
    """Somebody there."""
    account = calm.new_user()
    with account.client:
        yield account


@pytest.fixture
def other(calm: Server) -> Iterator[Account]:
    """Somebody else."""
    account = calm.new_user()
    with account.client:
        yield account


@pytest.fixture
def blocks(kubo: Kubo) -> Blockstore:
    """The node's."""
    return Blockstore(kubo.home / "ipfs")


@pytest.fixture(autouse=True)
def agreeing(calm: Server) -> Iterator[None]:
    """Whatever a test did: what holds when nothing is under way holds after it."""
    yield
    check_invariants(calm.services.database, pins(calm.settings).keys())


def some(account: Account, count: int, size: int = 1000) -> list[tuple[Account, bytes]]:
    """Fresh files of an account."""
    return [(account, os.urandom(size)) for _ in range(count)]


def fsck(server: Server, *, repair: bool = False, now: bool = False) -> FsckReport:
    """One run; with `now` without quarantine."""
    return beside(server.settings, lambda s: s.fsck.run(repair=repair, walk=True, now=now))


def troubles(report: FsckReport) -> set[tuple[FindingKind, str]]:
    """What is wrong, without dead leases: these tests leave some on purpose."""
    return {
        (finding.kind, finding.subject)
        for finding in report.findings
        if finding.is_trouble and finding.kind is not FindingKind.DEAD_LEASE
    }


def on_node(server: Server, *cids: str) -> None:
    """Take pins away behind on-api's back."""

    async def unpin(services: Services) -> None:
        for cid in cids:
            await services.node.unpin(cid)

    beside(server.settings, unpin)


def test_thirty_two_at_once(calm: Server) -> None:
    """By HTTP: all readable, charged to whose they are, most of them under a few pins."""
    with ExitStack() as stack:
        accounts = [calm.new_user() for _ in range(2)]
        for account in accounts:
            stack.enter_context(account.client)
        sent = [(accounts[n % 2], os.urandom(1000 + n)) for n in range(32)]

        async def send() -> list[httpx.Response]:
            async with httpx.AsyncClient(
                base_url=calm.url, timeout=60, verify=NO_TLS, trust_env=False, limits=httpx.Limits()
            ) as client:
                return await asyncio.gather(
                    *(
                        client.put(
                            "/v1/files?name=small",
                            content=data,
                            headers={"Authorization": f"Bearer {account.key}"},
                        )
                        for account, data in sent
                    )
                )

        answers = asyncio.run(send())
        assert {answer.status_code for answer in answers} == {201}
        for (account, data), answer in zip(sent, answers, strict=True):
            got = account.client.get(f"/v1/files/{answer.json()['id']}/content")
            assert got.content == data
        roots = {root_of(calm, answer.json()["cid"]) for answer in answers}
        assert len(roots) <= 16, "they went one by one"
        for n, account in enumerate(accounts):
            usage = account.client.get("/v1/users/me/usage").json()
            assert usage["storage"]["bytes"] == sum(len(data) for _, data in sent[n::2])


def test_one_alone_has_its_own_pin(calm: Server, user: Account) -> None:
    """As `pin/ls?type=recursive` shows it; also when a bundle covers it already."""
    [member] = bundle(calm, some(user, 1))  # behind others, but alone in its turn
    assert root_of(calm, member.cid) == member.cid
    first, _ = bundle(calm, some(user, 2))
    assert root_of(calm, first.cid) != first.cid
    user.upload(first.data)
    assert {member.cid, first.cid} <= pins(calm.settings).keys()
    # And that second pin goes when the content does.
    for item in user.client.get("/v1/files").json()["items"]:
        user.client.delete(f"/v1/files/{item['id']}")
    free(calm.settings)
    assert not {member.cid, first.cid, root_of(calm, first.cid)} & pins(calm.settings).keys()


def test_the_same_bytes_twice(calm: Server, user: Account, other: Account) -> None:
    """In one bundle and from before: stored once, referred to by each, charged once to each."""
    old, once, twice = os.urandom(700), os.urandom(800), os.urandom(900)
    user.upload(old)
    sent = [(user, twice), (user, twice), (other, twice), (user, old), (other, once)]
    members = bundle(calm, sent)
    assert [member.read() for member in members] == [data for _, data in sent]
    root = root_of(calm, members[0].cid)
    assert root != members[0].cid
    assert content(calm, root).dag_size < 900 + 800 + 200
    assert root_of(calm, members[3].cid) == members[3].cid
    for account, size in ((user, 700 + 900), (other, 900 + 800)):
        usage = account.client.get("/v1/users/me/usage").json()
        assert usage["storage"]["bytes"] == size


def test_a_quota_is_kept_to_the_byte(calm: Server, user: Account, other: Account) -> None:
    """Whose files don't fit hears so, one by one; nobody else does."""
    with calm.services.database.session_scope() as session:
        owner = session.scalars(select(User).where(User.username == user.username)).one()
        owner.storage_quota = 3500
    members = bundle(calm, [*some(user, 5), *some(other, 3)])
    mine = [member.file for member in members[:5]]
    assert sum(isinstance(file, FileFacts) for file in mine) == 3
    assert sum(isinstance(file, QuotaExceeded) for file in mine) == 2
    assert [member.read() for member in members[5:]] == [member.data for member in members[5:]]
    assert user.client.get("/v1/users/me/usage").json()["storage"]["bytes"] == 3000


def test_what_dies_goes_and_what_lives_stays(
    calm: Server, user: Account, blocks: Blockstore
) -> None:
    """One dead: nothing moves. Most dead: the others get pins of their own, the bundle goes. All
    dead: everything goes."""
    members = bundle(calm, some(user, 6))
    root = root_of(calm, members[0].cid)
    members[0].delete()
    free(calm.settings)
    assert content(calm, members[0].cid).state == ABSENT
    assert root in pins(calm.settings)
    assert collect(calm.settings) == "collected"
    assert [member.read() for member in members[1:]] == [member.data for member in members[1:]]

    for member in members[1:4]:
        member.delete()
    free(calm.settings)
    left = members[4:]
    assert content(calm, root).state == ABSENT
    found = pins(calm.settings)
    assert root not in found
    assert all(member.cid in found for member in left)
    assert collect(calm.settings) == "collected"
    assert [member.read() for member in left] == [member.data for member in left]
    assert not any(blocks.has(cid) for cid in (root, *(member.cid for member in members[:4])))

    whole = bundle(calm, some(user, 3))
    for member in (*left, *whole):
        member.delete()
    free(calm.settings)
    assert collect(calm.settings) == "collected"
    assert not any(blocks.has(member.cid) for member in (*left, *whole))
    assert fsck(calm).clean


def test_what_comes_back(calm: Server, user: Account, other: Account) -> None:
    """What died and still lies there is secured by what covers it now, alone or in a new bundle."""
    members = bundle(calm, some(user, 6))
    for member in members[:2]:
        member.delete()
    free(calm.settings)
    alone = other.upload(members[0].data)
    again, *_ = bundle(calm, [(other, members[1].data), *some(other, 1)])
    assert root_of(calm, members[0].cid) == alone["cid"] == members[0].cid
    assert root_of(calm, again.cid) not in {again.cid, root_of(calm, members[2].cid)}
    assert collect(calm.settings) == "collected"
    assert again.read() == members[1].data
    # Within the grace it simply stays where it is.
    members[2].delete()
    kept, _ = bundle(calm, [(other, members[2].data), *some(other, 1)])
    free(calm.settings)
    assert root_of(calm, kept.cid) == root_of(calm, members[3].cid)
    assert kept.read() == members[2].data


def test_pins_of_what_is_in_a_bundle(calm: Server, user: Account, other: Account) -> None:
    """Pinned at once, without the node; the content stays as long as the pin."""
    member, *rest = bundle(calm, some(user, 3))
    answer = other.client.post("/v1/pins", json={"cid": member.cid}).json()
    assert answer["status"] == "pinned"
    for each in (member, *rest):
        each.delete()
    free(calm.settings)
    assert collect(calm.settings) == "collected"

    async def read(services: Services) -> bytes | None:
        return await services.node.block(member.cid)

    assert beside(calm.settings, read) == member.data
    assert other.client.delete(f"/v1/pins/{answer['requestid']}").status_code == 202
    free(calm.settings)
    assert collect(calm.settings) == "collected"
    assert beside(calm.settings, read) is None


def test_a_bundle_somebody_pins(calm: Server, user: Account, other: Account) -> None:
    """It is a content like others: held by them, it outlives what lives in it."""
    members = bundle(calm, some(user, 3))
    root = root_of(calm, members[0].cid)
    answer = other.client.post("/v1/pins", json={"cid": root}).json()
    assert answer["status"] == "pinned"
    for member in members:
        member.delete()
    free(calm.settings)
    assert collect(calm.settings) == "collected"
    assert fsck(calm).clean
    assert other.client.delete(f"/v1/pins/{answer['requestid']}").status_code == 202
    free(calm.settings)
    assert root not in pins(calm.settings)


def test_a_bundle_that_lost_its_pin(calm: Server, user: Account, blocks: Blockstore) -> None:
    """Is one finding, and pinned again, also before garbage is collected."""
    members = bundle(calm, some(user, 4))
    root = root_of(calm, members[0].cid)
    on_node(calm, root)
    assert troubles(fsck(calm)) == {(FindingKind.MISSING_PIN, root)}
    assert not troubles(fsck(calm, repair=True))
    assert root in pins(calm.settings)
    on_node(calm, root)
    assert collect(calm.settings) == "collected"
    assert [member.read() for member in members] == [member.data for member in members]


def test_a_bundle_that_can_not_be_pinned_again(
    calm: Server, user: Account, blocks: Blockstore
) -> None:
    """For want of one block: the others get their own pins, and the one is told."""
    members = bundle(calm, some(user, 4))
    root, lost = root_of(calm, members[0].cid), members[1]
    on_node(calm, root)
    blocks.take(lost.cid)
    assert troubles(fsck(calm, repair=True)) == {(FindingKind.MISSING_PIN, lost.cid)}
    found = pins(calm.settings)
    assert root not in found
    others = [member for member in members if member is not lost]
    assert all(member.cid in found for member in others)
    # What is told stays told, and garbage is not collected, until it is there again.
    assert collect(calm.settings) == "unsafe"
    user.upload(lost.data)
    assert collect(calm.settings) == "collected"
    assert [member.read() for member in members] == [member.data for member in members]
    assert not troubles(fsck(calm))


def test_damage_in_a_bundle(calm: Server, user: Account, blocks: Blockstore) -> None:
    """Of something that lives: it is told by its own CID. Of something dead: the bundle is
    dissolved, since it could not be pinned again."""
    members = bundle(calm, some(user, 4))
    root = root_of(calm, members[0].cid)
    saved = blocks.take(members[0].cid)
    assert troubles(fsck(calm, repair=True)) == {(FindingKind.DAMAGED_DAG, members[0].cid)}
    assert root in pins(calm.settings)
    blocks.put(members[0].cid, saved)
    members[0].delete()
    free(calm.settings)
    blocks.take(members[0].cid)
    assert troubles(fsck(calm)) == {(FindingKind.DAMAGED_DAG, root)}
    assert not troubles(fsck(calm, repair=True))
    assert root not in pins(calm.settings)
    assert [member.read() for member in members[1:]] == [member.data for member in members[1:]]


# Faults and races, behind a proxy to the node.


@pytest.fixture
def proxy(kubo: Kubo) -> Iterator[RpcProxy]:
    """Between some on-api and the node."""
    with held_rpc(str(kubo.ipfs.rpc_url)) as running:
        yield running


@pytest.fixture
def behind(calm: Server, proxy: RpcProxy) -> Settings:
    """Settings of another process on the same database, behind the proxy."""
    ipfs = calm.settings.ipfs.model_copy(update={"rpc_url": proxy.url})
    return calm.settings.model_copy(update={"ipfs": ipfs})


def test_an_account_is_deleted_meanwhile(
    calm: Server, user: Account, proxy: RpcProxy, behind: Settings
) -> None:
    """Their upload is refused, the others' are stored."""
    gone = calm.new_user()
    gone.client.close()
    gate = proxy.hold("dag/import")
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(bundle, calm, [*some(user, 2), *some(gone, 1)], behind)
        gate.wait_until_reached()
        with calm.services.database.session_scope() as session:
            session.execute(
                update(User).where(User.username == gone.username).values(deleted_at=utc_now())
            )
        gate.open()
        *ours, theirs = sending.result()
    assert isinstance(theirs.file, Unauthorized)
    assert [member.read() for member in ours] == [member.data for member in ours]
    with calm.services.database.session_scope(write=False) as session:
        assert session.get(Content, theirs.cid) is None


@pytest.mark.parametrize("command", ["dag/import", "pin/add"])
@pytest.mark.parametrize("answer", [False, True], ids=["before", "after"])
def test_the_node_fails(
    calm: Server, user: Account, proxy: RpcProxy, behind: Settings, command: str, answer: bool
) -> None:
    """At each step, having done it or not: nobody is told of success, nothing is recorded, what is
    left over is found."""
    proxy.cut(command, answer=answer)
    members = bundle(calm, some(user, 3), behind)
    assert all(isinstance(member.file, NodeError) for member in members)
    assert user.client.get("/v1/files").json()["count"] == 0
    orphans = {
        cid
        for kind, cid in troubles(fsck(calm))
        if kind is FindingKind.ORPHAN_PIN and Cid.from_text(cid).codec == DAG_CBOR
    }
    assert len(orphans) == (command == "pin/add" and answer)
    assert not troubles(fsck(calm, repair=True))
    assert not orphans & pins(calm.settings).keys()
    # The same bytes come through when the node is well.
    proxy.mend()
    again = bundle(calm, [(user, member.data) for member in members], behind)
    assert [member.read() for member in again] == [member.data for member in members]


@pytest.mark.parametrize("unpinned", [False, True])
def test_the_lease_is_lost_before_the_record(
    calm: Server, user: Account, proxy: RpcProxy, behind: Settings, unpinned: bool
) -> None:
    """As when the process slept for hours and somebody cleaned up: nothing is recorded."""
    gate = proxy.hold("pin/add", answer=True)
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(bundle, calm, some(user, 3), behind)
        gate.wait_until_reached()
        with calm.services.database.session_scope() as session:
            ours = session.scalars(select(Lease).where(Lease.lease_until > utc_now())).all()
            session.execute(delete(Lease).where(Lease.id.in_([lease.id for lease in ours])))
        if unpinned:
            assert not troubles(fsck(calm, repair=True, now=True))
        gate.open()
        members = sending.result()
    assert not any(isinstance(member.file, FileFacts) for member in members)
    assert user.client.get("/v1/files").json()["count"] == 0
    # No row tells of the pin's work any more, so that without `now` it would be in quarantine.
    assert fsck(calm, repair=True, now=True).deferred == 0
    assert not troubles(fsck(calm))


def test_a_bundle_goes_while_its_content_comes_back(
    calm: Server, user: Account, other: Account, proxy: RpcProxy, behind: Settings
) -> None:
    """The node is about to unpin the bundle: who sends the same bytes gets a pin of their own."""
    members = bundle(calm, some(user, 3))
    root = root_of(calm, members[0].cid)
    for member in members:
        member.delete()
    gate = proxy.hold("pin/rm")
    with ThreadPoolExecutor() as pool:
        freeing = pool.submit(free, behind)
        gate.wait_until_reached()
        assert content(calm, root).state == UNPINNING
        assert content(calm, members[0].cid).state == ABSENT
        back = other.upload(members[0].data)
        again, _ = bundle(calm, [(other, members[1].data), *some(other, 1)])
        gate.open()
        freeing.result()
    assert root not in pins(calm.settings)
    assert collect(calm.settings) == "collected"
    got = other.client.get(f"/v1/files/{back['id']}/content")
    assert (got.content, again.read()) == (members[0].data, members[1].data)


@pytest.mark.parametrize("answer", [False, True], ids=["before", "after"])
def test_a_content_dies_while_it_gets_its_own_pin(
    calm: Server, user: Account, proxy: RpcProxy, behind: Settings, answer: bool
) -> None:
    """Thinning out is about to pin it, or has and not yet said so: that pin goes too."""
    members = bundle(calm, some(user, 6))
    last = members[5]
    for member in members[:5]:
        member.delete()
    gate = proxy.hold("pin/add", answer=answer)
    with ThreadPoolExecutor() as pool:
        freeing = pool.submit(free, behind)
        gate.wait_until_reached()
        assert (last.cid in pins(calm.settings)) == answer
        last.delete()
        free(calm.settings)
        gate.open()
        freeing.result()
    free(calm.settings)
    assert not {member.cid for member in members} & pins(calm.settings).keys()
    assert not troubles(fsck(calm))


def test_thinning_out_is_broken_off(
    calm: Server, user: Account, proxy: RpcProxy, behind: Settings
) -> None:
    """The node pinned it and we never heard: the bundle covers it until the next try, and nothing
    is left over when it dies before that."""
    members = bundle(calm, some(user, 6))
    root, last = root_of(calm, members[0].cid), members[5]
    for member in members[:5]:
        member.delete()
    proxy.cut("pin/add", answer=True)
    free(behind)
    assert root_of(calm, last.cid) == root
    assert {root, last.cid} <= pins(calm.settings).keys()
    last.delete()
    free(calm.settings)
    assert not {root, last.cid} & pins(calm.settings).keys()


def test_garbage_is_not_collected_under_a_bundle(
    calm: Server, user: Account, proxy: RpcProxy, behind: Settings
) -> None:
    """Its blocks lie on the node without a pin: the collection waits, and is put off."""
    gate = proxy.hold("pin/add")
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(bundle, calm, some(user, 3), behind)
        gate.wait_until_reached()

        async def try_to(services: Services) -> str:
            return (await services.garbage.collect(0.1)).outcome

        assert beside(calm.settings, try_to) == "postponed"
        gate.open()
        members = sending.result()
    assert collect(calm.settings) == "collected"
    assert [member.read() for member in members] == [member.data for member in members]


def test_bundles_share_a_lease(calm: Server, user: Account) -> None:
    """Kept between two of them, by which both are named; gone with the process's services."""

    async def run(services: Services) -> list[FileFacts]:
        asking = services.authenticator.authenticate(user.key)
        sent = [[os.urandom(100) for _ in range(6)] for _ in range(2)]
        each = [
            await asyncio.gather(*(upload(services, asking, data) for data in some_data))
            for some_data in sent
        ]
        return [file for files in each for file in files]

    files = beside(calm.settings, run)
    roots = {root_of(calm, file.cid) for file in files} - {file.cid for file in files}
    names = pins(calm.settings)
    assert len(roots) == 2
    assert len({names[root] for root in roots}) == 1
    with calm.services.database.session_scope(write=False) as session:
        assert not session.scalars(select(Lease).where(Lease.lease_until > utc_now())).all()


def test_a_collection_does_not_wait_for_a_lease_that_lingers(
    calm: Server,
    user: Account,
    proxy: RpcProxy,
    behind: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It begins while a bundle is stored: that is recorded, and nobody begins under its lease."""
    monkeypatch.setattr(standing_lease, "LINGER_SECONDS", 3600)
    gate = proxy.hold("pin/add")

    async def run(services: Services) -> tuple[str, list[FileFacts]]:
        asking = services.authenticator.authenticate(user.key)
        storing = asyncio.gather(
            *(upload(services, asking, os.urandom(1000)) for _ in range(AT_ONCE + 3))
        )
        await asyncio.to_thread(gate.wait_until_reached)
        collecting = asyncio.create_task(services.garbage.collect(20))
        while not await asyncio.to_thread(is_collecting):
            await asyncio.sleep(0.02)
        gate.open()
        files = await storing
        return (await collecting).outcome, files

    def is_collecting() -> bool:
        with calm.services.database.session_scope(write=False) as session:
            return maintenance.is_under_way(session, maintenance.GARBAGE)

    outcome, files = beside(behind, run)
    assert outcome == "collected"
    for file in files:
        assert user.client.get(f"/v1/files/{file.id}/content").status_code == 200
