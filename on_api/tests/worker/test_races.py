"""What happens to content at the same moment: removed and asked for, by one user and another, in
every order that the node's slowness allows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.models import Content
from on_api.core.setting_groups import GcSettings, WorkerSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.invariants import check_invariants
from on_api.tests.testing.network import Peer
from on_api.tests.testing.rpc_proxy import RpcProxy, held_rpc
from on_api.tests.worker.conftest import account_of, ended, look, pin


@pytest.fixture
def proxy(here: Peer) -> Iterator[RpcProxy]:
    """Between on-api and its node."""
    with held_rpc(str(here.ipfs.rpc_url)) as running:
        yield running


@pytest.fixture
def racing(
    here: Peer, proxy: RpcProxy, settings_for: Callable[..., Settings], new_database: DatabaseMaker
) -> Iterator[Server]:
    """An on-api that unpins at once what nobody refers to."""
    settings = settings_for(
        new_database(),
        ipfs=here.ipfs.model_copy(update={"rpc_url": proxy.url}),
        worker=WorkerSettings(poll=0.2, lease_seconds=2),
        gc=GcSettings(grace=0, interval=0),
    )
    with Server(settings) as server:
        yield server


def state_of(server: Server, cid: object) -> str | None:
    """Of a content's row."""
    with server.services.database.session_scope(write=False) as session:
        return session.scalar(select(Content.state).where(Content.cid == cid))


def delete(account: Account, file: dict[str, object]) -> None:
    """A file."""
    assert account.client.delete(f"/v1/files/{file['id']}").status_code == 204


def content_of(account: Account, file_id: object) -> bytes:
    """The bytes, by on-api."""
    answer = account.client.get(f"/v1/files/{file_id}/content")
    assert answer.status_code == 200
    return answer.content


def test_grace_zero_unpins_and_frees(racing: Server, here: Peer) -> None:
    """What nobody refers to any more is unpinned soon, and pinned anew by whoever comes back."""
    data = os.urandom(5000)
    with account_of(racing) as ada, account_of(racing) as ben:
        first, other = ada.upload(data), ben.upload(data)
        cid = str(first["cid"])
        delete(ada, first)
        assert state_of(racing, cid) == "pinned"
        delete(ben, other)
        until(lambda: state_of(racing, cid) == "absent", "it is unpinned")
        assert cid not in here.pins()
        # Its blocks lie there still: a pin needs no network.
        assert ended(ben, pin(ben, cid))["status"] == "pinned"
        check_invariants(racing.services.database, here.pins().keys())


@pytest.mark.parametrize("answer", [False, True], ids=["before", "after"])
def test_an_upload_while_it_is_unpinned(
    racing: Server, proxy: RpcProxy, here: Peer, answer: bool
) -> None:
    """Before or after the node has done it: the upload waits for the end, pins again, and only then
    is answered."""
    data = os.urandom(5000)
    cid = build_file(data).cid
    with account_of(racing) as ada, account_of(racing) as ben, ThreadPoolExecutor() as pool:
        file = ada.upload(data)
        gate = proxy.hold("pin/rm", answer=answer)
        delete(ada, file)
        gate.wait_until_reached()
        assert state_of(racing, cid) == "unpinning"
        uploads = [pool.submit(account.upload, data) for account in (ada, ben)]
        until(lambda: proxy.count("pin/ls", cid) >= 3, "the node has verified both uploads")
        assert not any(upload.done() for upload in uploads)
        gate.open()
        ids = [upload.result()["id"] for upload in uploads]
        assert cid in here.pins()
        assert [content_of(ada, ids[0]), content_of(ben, ids[1])] == [data, data]
        assert state_of(racing, cid) == "pinned"
        check_invariants(racing.services.database, here.pins().keys())


def test_an_upload_whose_pin_is_taken_away_at_once(
    racing: Server, proxy: RpcProxy, here: Peer
) -> None:
    """The removal comes between the node's pin and our look at it: it is pinned again."""
    data = os.urandom(5000)
    cid = build_file(data).cid
    with account_of(racing) as ada, ThreadPoolExecutor() as pool:
        removing = proxy.hold("pin/rm")
        delete(ada, ada.upload(data))
        removing.wait_until_reached()
        looking = proxy.hold("pin/ls")
        upload = pool.submit(ada.upload, data)
        looking.wait_until_reached()
        removing.open()
        until(lambda: cid not in here.pins(), "it is unpinned")
        looking.open()
        assert content_of(ada, upload.result()["id"]) == data
        assert cid in here.pins()
        check_invariants(racing.services.database, here.pins().keys())


def test_a_pin_while_it_is_unpinned(racing: Server, proxy: RpcProxy, here: Peer) -> None:
    """By its last user and another one: both get it, and the node has it once."""
    data = os.urandom(5000)
    cid = build_file(data).cid
    with account_of(racing) as ada, account_of(racing) as ben:
        file = ada.upload(data)
        gate = proxy.hold("pin/rm", answer=True)
        delete(ada, file)
        gate.wait_until_reached()
        ids = [(account, pin(account, cid)) for account in (ada, ben, ada)]
        assert {look(*one)["status"] for one in ids} == {"queued"}
        gate.open()
        assert [ended(*one)["status"] for one in ids] == ["pinned"] * 3
        check_invariants(racing.services.database, here.pins().keys())
        for account, pin_id in ids:
            assert account.client.delete(f"/v1/pins/{pin_id}").status_code == 202
        until(lambda: state_of(racing, cid) == "absent", "it is unpinned")
        assert cid not in here.pins()


def test_a_removal_whose_answer_is_lost(racing: Server, proxy: RpcProxy, here: Peer) -> None:
    """The node has unpinned it and nobody knows: an upload waits no longer than the claim lives."""
    data = os.urandom(5000)
    cid = build_file(data).cid
    with account_of(racing) as ada, ThreadPoolExecutor() as pool:
        gate = proxy.hold("pin/rm", answer=True)
        delete(ada, ada.upload(data))
        gate.wait_until_reached()
        upload = pool.submit(ada.upload, data)
        file = upload.result(timeout=20)
        assert state_of(racing, cid) == "pinned"
        # The claim is over. What comes of it now changes nothing, and is looked after.
        before = proxy.count("pin/ls", cid)
        gate.open()
        until(lambda: proxy.count("pin/ls", cid) > before, "the late removal has looked")
        assert state_of(racing, cid) == "pinned"
        assert cid in here.pins()
        assert content_of(ada, file["id"]) == data
        check_invariants(racing.services.database, here.pins().keys())


def test_a_late_unpin_is_mended(racing: Server, proxy: RpcProxy, here: Peer) -> None:
    """The node unpins only after the claim has ended and an upload was promised: it is pinned
    again at once."""
    data = os.urandom(5000)
    cid = build_file(data).cid
    with account_of(racing) as ada, ThreadPoolExecutor() as pool:
        gate = proxy.hold("pin/rm")
        delete(ada, ada.upload(data))
        gate.wait_until_reached()
        file = pool.submit(ada.upload, data).result(timeout=20)
        assert cid in here.pins()
        before = proxy.count("pin/add", cid)
        gate.open()
        until(lambda: proxy.count("pin/add", cid) > before, "it is pinned again")
        until(lambda: cid in here.pins(), "the node has done it")
        assert content_of(ada, file["id"]) == data
        check_invariants(racing.services.database, here.pins().keys())


def test_two_users_and_a_missing_leaf(racing: Server, here: Peer) -> None:
    """A second pin of the same content never touches the first one's, damaged as it may be."""
    data = os.urandom(3 * 1024 * 1024)
    with account_of(racing) as ada, account_of(racing) as ben:
        file = ada.upload(data)
        cid = str(file["cid"])
        leaf = [node.cid for node in build_file(data).walk()][-1]
        here.blocks.take(leaf)
        assert ended(ben, pin(ben, cid))["status"] == "pinned"
        assert cid in here.pins()
        assert ada.client.get(f"/v1/files/{file['id']}").status_code == 200
        check_invariants(racing.services.database, here.pins().keys())
