"""Garbage collection beside everything else: it runs or is put off, and nobody notices but by what
is free."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event

import pytest

from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.models import Maintenance
from on_api.core.models.database import new_id, utc_now
from on_api.core.models.revisions import PROJECT
from on_api.core.services.content import maintenance
from on_api.core.services.content.maintenance import GARBAGE, Turn
from on_api.core.services.upkeep.garbage import Collection, GarbageCollector
from on_api.core.setting_groups import GcSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker, Server
from on_api.tests.testing.bundles import beside
from on_api.tests.testing.deadline import until
from on_api.tests.testing.invariants import check_invariants
from on_api.tests.testing.network import Peer
from on_api.tests.testing.processes import ON_API
from on_api.tests.testing.rpc_proxy import RpcProxy, held_rpc
from on_api.tests.worker.conftest import MakeSettings, account_of, ended, look, new_cid, pin

MIB = 1024 * 1024


@pytest.fixture
def proxy(here: Peer) -> Iterator[RpcProxy]:
    """Between on-api and its node."""
    with held_rpc(str(here.ipfs.rpc_url)) as running:
        yield running


@pytest.fixture
def server(
    here: Peer, proxy: RpcProxy, on_here: MakeSettings, new_database: DatabaseMaker
) -> Iterator[Server]:
    """An on-api that unpins at once."""
    settings = on_here(
        new_database(),
        ipfs=here.ipfs.model_copy(update={"rpc_url": proxy.url}),
        gc=GcSettings(grace=0, interval=0),
    )
    with Server(settings) as running:
        yield running


def collect(server: Server, patience: str = "30") -> Collection:
    """`on-api gc --json`, as its operator runs it."""
    done = subprocess.run(
        [ON_API, "gc", "--json", "--patience", patience],
        env=environment(server.settings),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    outcome = Collection(**json.loads(done.stdout))
    assert done.returncode == (0 if outcome.outcome == "collected" else 1), done.stderr
    return outcome


def environment(settings: Settings) -> dict[str, str]:
    """The same settings for a process."""
    assert settings.secret_key is not None
    assert settings.ipfs.rpc_auth is not None
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("ON_API_")},
        "ON_API_HOME": str(settings.home),
        "ON_API_DATABASE_URL": settings.sqlalchemy_url,
        "ON_API_SECRET_KEY": settings.secret_key.get_secret_value(),
        "ON_API_IPFS__RPC_URL": settings.rpc_url,
        "ON_API_IPFS__GATEWAY_URL": settings.gateway_url,
        "ON_API_IPFS__RPC_AUTH": settings.ipfs.rpc_auth.get_secret_value(),
    }


def test_it_frees_what_nobody_holds_and_nothing_else(
    server: Server, proxy: RpcProxy, here: Peer, bystander: Peer
) -> None:
    """Beside a pin nobody has, which makes way and goes on; while it runs new uploads are asked to
    come back, and everything else is answered."""
    with account_of(server) as ada, account_of(server) as ben, ThreadPoolExecutor() as pool:
        kept, gone, shared = (os.urandom(2 * MIB + n) for n in range(3))
        file, dead, one = ada.upload(kept), ada.upload(gone), ada.upload(shared)
        ben.upload(shared)
        pinned = pin(ben, here.add(os.urandom(3000), pinned=False))
        assert ended(ben, pinned)["status"] == "pinned"
        for deleted in (dead, one):
            assert ada.client.delete(f"/v1/files/{deleted['id']}").status_code == 204
        until(lambda: proxy.count("pin/rm", str(dead["cid"])), "it is unpinned")
        hopeless = pin(ada, new_cid())
        until(lambda: look(ada, hopeless)["status"] == "pinning", "the hopeless fetch begins")

        gate = proxy.hold("repo/gc", answer=True)
        collecting = pool.submit(collect, server)
        gate.wait_until_reached()
        refused = ada.client.put("/v1/files?name=now", content=b"now")
        assert (refused.status_code, refused.headers["Retry-After"].isdigit()) == (503, True)
        assert ada.client.get(f"/v1/files/{file['id']}/content").content == kept
        assert ada.client.get("/v1/files").json()["count"] == 1
        assert ada.client.patch(f"/v1/files/{file['id']}", json={"name": "n"}).status_code == 200
        late = pin(ben, new_cid())
        assert {look(ada, hopeless)["status"], look(ben, late)["status"]} == {"queued"}
        gate.open()
        done = collecting.result()

        assert done.outcome == "collected"
        blocks = {node.cid for node in build_file(gone).walk()}
        assert done.removed_blocks >= len(blocks)
        assert done.freed_bytes >= 2 * MIB
        assert not any(here.blocks.has(cid) for cid in blocks)
        for data in (kept, shared):
            assert all(here.blocks.has(node.cid) for node in build_file(data).walk())
        assert ada.client.put("/v1/files?name=now", content=b"now").status_code == 201
        until(lambda: look(ada, hopeless)["status"] == "pinning", "the fetch goes on")
        with account_of(server, admin=True) as admin:
            shown = admin.client.get("/v1/node").json()
            assert shown["last_gc"]["result"]["removed_blocks"] == done.removed_blocks
        for account, pin_id in ((ada, hopeless), (ben, late)):
            account.client.delete(f"/v1/pins/{pin_id}")
        until(lambda: look(ben, pinned)["status"] == "pinned", "still")
        check_invariants(server.services.database, here.pins().keys())


def test_it_is_put_off_while_an_upload_trickles_in(server: Server, here: Peer) -> None:
    """A kilobyte a second is an upload too: it is waited for, then left alone; and the next try
    comes soon, not with the next regular one."""
    enough = Event()

    def trickle() -> Iterator[bytes]:
        while not enough.wait(0.1):
            yield b"x" * 100

    with account_of(server) as ada, ThreadPoolExecutor() as pool:
        upload = pool.submit(ada.client.put, "/v1/files?name=slow", content=trickle())
        until(lambda: server.services.metrics.in_flight >= 1, "it has begun")
        with account_of(server) as ben:
            assert collect(server, "1").outcome == "postponed"
            assert ben.client.get("/v1/files").status_code == 200
            ben.upload(b"others come in again")
        assert not upload.done()
        assert not is_due(server, timedelta(days=1))
        assert is_due(server, timedelta(0))
        enough.set()
        assert upload.result().status_code == 201
        assert collect(server).outcome == "collected"


def is_due(server: Server, interval: timedelta) -> bool:
    """Whether the schedule wants one now."""
    garbage: GarbageCollector = server.services.garbage
    return garbage.is_due(interval)


@pytest.mark.parametrize("taken", [False, True], ids=["over", "another's"])
def test_it_is_put_off_when_its_turn_is_lost(server: Server, proxy: RpcProxy, taken: bool) -> None:
    """The process was asleep while it looked whether all is pinned: uploads may have begun."""
    looking = proxy.hold("pin/ls")
    with ThreadPoolExecutor() as pool:
        collecting = pool.submit(
            beside, server.settings, lambda services: services.garbage.collect(30)
        )
        looking.wait_until_reached()
        until(lambda: is_collecting(server), "it has its turn")
        with server.services.database.session_scope() as session:
            row = session.get_one(Maintenance, GARBAGE)
            row.lease_until = utc_now() + timedelta(minutes=1 if taken else -1)
            row.token = new_id() if taken else row.token
        looking.open()
        assert collecting.result().outcome == "postponed"
    assert proxy.count("repo/gc", "") == 0
    with server.services.database.session_scope() as session:
        session.get_one(Maintenance, GARBAGE).lease_until = utc_now()
    assert collect(server).outcome == "collected"
    assert proxy.count("repo/gc", "") == 1


def is_collecting(server: Server) -> bool:
    """Whether somebody has the turn."""
    with server.services.database.session_scope(write=False) as session:
        return maintenance.is_under_way(session, GARBAGE)


def test_a_turn_that_is_over_never_comes_back(server: Server) -> None:
    """Somebody may have begun since: its renewal comes too late."""
    database = server.services.database
    turn = Turn(database, GARBAGE)
    assert turn.renew()
    with database.session_scope() as session:
        session.get_one(Maintenance, GARBAGE).lease_until = utc_now()
    assert not turn.renew()
    with database.session_scope() as session:
        maintenance.require_no_collection(session)


def test_a_lost_pin_is_renewed_before_anything_goes(server: Server, here: Peer) -> None:
    """As a Kubo leaves it that was killed while it renewed the pin of bytes that came again."""
    with account_of(server) as alice:
        data = os.urandom(2 * MIB)
        file = alice.upload(data)
        here.rpc("pin/rm", {"arg": str(file["cid"])})
        assert collect(server).outcome == "collected"
        assert alice.client.get(f"/v1/files/{file['id']}/content").content == data


def test_nothing_goes_while_held_content_can_not_be_pinned(server: Server, here: Peer) -> None:
    """What is left of it may be all that there is."""
    with account_of(server) as alice:
        data = os.urandom(2 * MIB)
        file = alice.upload(data)
        first, second = (child.cid for child in build_file(data).children)
        here.blocks.take(first)
        here.rpc("pin/rm", {"arg": str(file["cid"])})
        assert collect(server).outcome == "unsafe"
        assert here.blocks.has(second)
        alice.client.delete(f"/v1/files/{file['id']}")
