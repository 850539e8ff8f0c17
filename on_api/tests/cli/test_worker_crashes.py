"""`kill -9`, freezing and everything else that ends a worker at the worst moment: each pin has
exactly one end, and nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select, text

from on_api.core.models import Database, UserUsage
from on_api.core.services.pins import jobs as pin_jobs
from on_api.core.services.pins.pins import PinRequest
from on_api.core.setting_groups import WorkerSettings
from on_api.core.settings import Settings
from on_api.tests.cli.test_crashes import pins_on_node
from on_api.tests.conftest import Account, DatabaseMaker, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.invariants import check_invariants
from on_api.tests.testing.network import Peer
from on_api.tests.testing.postgres import running_postgres
from on_api.tests.testing.processes import Home, working
from on_api.tests.testing.rpc_proxy import Call, RpcProxy, held_rpc
from on_api.tests.worker.conftest import account_of, ended, look, pin

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals as on Linux")

LEASE = 2
"""Seconds that a dead worker's pins wait."""
QUICK = WorkerSettings(embedded=False, poll=0.1, lease_seconds=LEASE)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A node of this module's own: others' pins would be counted with ours."""
    made = Peer(tmp_path_factory.mktemp("peer"))
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def proxy(peer: Peer) -> Iterator[RpcProxy]:
    """Between the workers and the node."""
    with held_rpc(str(peer.ipfs.rpc_url)) as running:
        yield running


@pytest.fixture
def api(
    peer: Peer,
    settings_for: Callable[..., Settings],
    postgres_database: DatabaseMaker,
) -> Iterator[Server]:
    """The API alone: workers are processes of their own."""
    settings = settings_for(postgres_database(), ipfs=peer.ipfs, worker=QUICK)
    with Server(settings) as running:
        yield running


@contextmanager
def worker(server: Server, proxy: RpcProxy) -> Iterator[subprocess.Popen[bytes]]:
    """`on-api worker`, working; killed in the end."""
    settings = server.settings
    ipfs = settings.ipfs.model_copy(update={"rpc_url": proxy.url})
    with working(settings.model_copy(update={"ipfs": ipfs}), LEASE) as process:
        yield process


def new_content(peer: Peer) -> str:
    """Something that lies on the node unpinned."""
    return peer.add(os.urandom(1000), pinned=False)


def check(server: Server, peer: Peer) -> None:
    """Everything at rest and in agreement."""
    check_invariants(server.services.database, peer.pins().keys())


@pytest.mark.parametrize("count", [1, 3], ids=["alone", "together"])
def test_kill_9_around_the_nodes_answer(
    api: Server, peer: Peer, proxy: RpcProxy, count: int
) -> None:
    """Before the node has heard of it; when it has done it and nobody knows; when the worker knows
    and is about to commit. The next worker brings each pin to its one end."""
    with account_of(api) as ada, ExitStack() as workers:
        victim = workers.enter_context(worker(api, proxy))
        for moment in ("before", "during", "after"):
            gate = proxy.hold("pin/add", answer=moment != "before")
            cids = {new_content(peer) for _ in range(count)}
            with api.services.database.session_scope() as session:
                requests = [PinRequest(cid) for cid in cids]
                made = api.services.pins.add_many(session, uuid.UUID(ada.id), requests)
                ids = [str(each.id) for each in made]
            gate.wait_until_reached()
            assert peer.pins().keys() & cids == (set() if moment == "before" else cids)
            if moment == "after":
                with locked_usage(api, ada) as is_waited_for:
                    gate.open()
                    until(is_waited_for, "the worker is about to commit")
                    kill(victim)
            else:
                kill(victim)
                gate.open()
            assert {look(ada, pin_id)["status"] for pin_id in ids} == {"queued"}
            victim = workers.enter_context(worker(api, proxy))
            assert {ended(ada, pin_id)["status"] for pin_id in ids} == {"pinned"}
            check(api, peer)


def test_a_worker_that_was_frozen(api: Server, peer: Peer, proxy: RpcProxy) -> None:
    """Past its lease: another one does its work, and what it wants to write when it wakes is
    dropped, be the pin there or deleted by then."""
    with account_of(api) as ada, worker(api, proxy) as frozen:
        gate = proxy.hold("pin/add", answer=True)
        kept, dropped = new_content(peer), new_content(peer)
        ids = [pin(ada, kept), pin(ada, dropped)]
        until(lambda: {kept, dropped} <= peer.pins().keys(), "the node has done both")
        frozen.send_signal(signal.SIGSTOP)
        with held_rpc(str(peer.ipfs.rpc_url)) as free_way, worker(api, free_way):
            assert [ended(ada, pin_id)["status"] for pin_id in ids] == ["pinned", "pinned"]
            assert ada.client.delete(f"/v1/pins/{ids[1]}").status_code == 202
            before = len(proxy.calls)  # before it wakes: it may act at once
            frozen.send_signal(signal.SIGCONT)
            gate.open()
            # It looks what it may have left on the node, and finds that it is somebody's.
            until(lambda: proxy.calls[before:].count(Call("pin/ls", kept)) > 1, "it has woken")
            check(api, peer)
        assert look(ada, ids[0])["status"] == "pinned"
        assert ada.client.get(f"/v1/pins/{ids[1]}").status_code == 404
        check(api, peer)


def test_postgres_stopped_in_mid_transaction(
    tmp_path: Path, peer: Peer, proxy: RpcProxy, settings_for: Callable[..., Settings]
) -> None:
    """`immediate`, while pins are being recorded and asked for: what was promised is kept."""
    (tmp_path / "data").mkdir()
    with running_postgres(tmp_path / "data") as postgres:
        database_url = DatabaseMaker(tmp_path, postgres.url)()
        ipfs = peer.ipfs.model_copy(update={"rpc_url": proxy.url})
        settings = settings_for(
            database_url, ipfs=ipfs, worker=QUICK.model_copy(update={"embedded": True})
        )
        with Server(settings) as server, account_of(server) as ada:
            gate = proxy.hold("pin/add", answer=True)
            promised = [pin(ada, new_content(peer)) for _ in range(12)]
            gate.wait_until_reached()
            gate.open()
            postgres.stop_immediately()
            assert post(ada, new_content(peer)).status_code == 503
            postgres.start()
            until(lambda: post(ada, new_content(peer)).is_success, "it is back")
            for pin_id in promised:
                assert ended(ada, pin_id)["status"] == "pinned"
            until(lambda: at_rest(server), "all that was asked for has its end")
            check(server, peer)


@pytest.mark.parametrize(
    "kills", [1, pytest.param(40, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
def test_everything_in_one_process_killed_at_random_moments(
    tmp_path: Path, peer: Peer, kills: int
) -> None:
    """`on-api serve` on SQLite, with its worker and its node, and now and then the node alone,
    while pins are fetched from another node: each promised one gets there, once."""
    (tmp_path / "home").mkdir(mode=0o700)
    home = Home(
        tmp_path / "home",
        extra={
            "ON_API_WORKER__LEASE_SECONDS": str(LEASE),
            "ON_API_WORKER__POLL": "0.05",
            "ON_API_PINS__DIAL_PRIVATE": "true",
        },
    )
    key = home.init()
    origins, promised = peer.addresses(), []
    for number in range(kills):
        with home.serving() as process, home.client(key) as client:
            for _ in range(6):
                cid = peer.add(os.urandom(100_000))
                answer = client.post("/v1/pins", json={"cid": cid, "origins": origins})
                assert answer.status_code == 202, answer.text
                promised.append(answer.json()["requestid"])
            # The moment is the thing under test, and must be random.
            time.sleep(random.uniform(0.0, 1.5))
            if number % 2:
                os.kill(home.kubo_pid(), signal.SIGKILL)
            else:
                kill(process)
    with home.serving(), home.client(key) as client:
        until(lambda: client.get("/v1/pins").json()["count"] == len(promised), "all are pinned", 60)
        seen = client.get("/v1/pins", params={"limit": 1000}).json()["results"]
        assert {one["requestid"] for one in seen} == set(promised)
        database = Database(Settings(_env_file=None, home=home.path))
        check_invariants(database, pins_on_node(home).keys())
        database.dispose()


def post(account: Account, cid: str) -> httpx.Response:
    """Ask for a pin, whatever comes of it."""
    return account.client.post("/v1/pins", json={"cid": cid})


def at_rest(server: Server) -> bool:
    """No pin waits or is being worked on."""
    with server.services.database.session_scope(write=False) as session:
        return pin_jobs.queue_length(session) == 0


@contextmanager
def locked_usage(server: Server, account: Account) -> Iterator[Callable[[], bool]]:
    """Hold a user's counters; tells whether somebody waits for them."""
    database = server.services.database

    def is_waited_for() -> bool:
        with database.session_scope(write=False) as session:
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            return bool(session.scalar(waiting))

    with database.session_scope() as session:
        statement = select(UserUsage).where(UserUsage.user_id == uuid.UUID(account.id))
        session.scalars(statement.with_for_update()).one()
        yield is_waited_for


def kill(process: subprocess.Popen[bytes]) -> None:
    """By surprise."""
    process.kill()
    process.wait()
