"""What uploads and jobs that fail, or are killed, leave on the node: counted until the worker has
removed it, soon after the lease is dead and without `fsck`."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select, update

from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.models import Content, Lease, LeasedPin, Pin, UserUsage
from on_api.core.models.database import utc_now
from on_api.core.models.revisions import PROJECT
from on_api.core.services.container import Services
from on_api.core.services.content import leftovers
from on_api.core.services.content.leases import UPLOAD, JobHolder, release_dead_leases
from on_api.core.services.content.reservations import Announced
from on_api.core.services.upkeep.fsck.findings import FsckReport
from on_api.core.setting_groups import FilesSettings, GcSettings, WorkerSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Server, free_port
from on_api.tests.testing.bundles import beside
from on_api.tests.testing.dags import car_with, tree
from on_api.tests.testing.deadline import until
from on_api.tests.testing.invariants import check_invariants
from on_api.tests.testing.leftovers import remove_leftovers, remover_of
from on_api.tests.testing.network import Peer
from on_api.tests.testing.processes import ON_API
from on_api.tests.testing.rpc_proxy import RpcProxy, held_rpc
from on_api.tests.worker.conftest import account_of, new_cid, pin

MIB = 1024 * 1024


@pytest.fixture
def proxy(here: Peer) -> Iterator[RpcProxy]:
    """Between on-api and its node."""
    with held_rpc(str(here.ipfs.rpc_url)) as running:
        yield running


@pytest.fixture
def settings(
    here: Peer, proxy: RpcProxy, settings_for: Callable[..., Settings], new_database: DatabaseMaker
) -> Settings:
    """With the shortest lease, and the usual time of grace."""
    return settings_for(
        new_database(),
        ipfs=here.ipfs.model_copy(update={"rpc_url": proxy.url}),
        files=FilesSettings(lease_seconds=10),
        worker=WorkerSettings(poll=0.2, lease_seconds=2),
        gc=GcSettings(interval=0),
    )


@pytest.fixture
def failing(settings: Settings) -> Iterator[Server]:
    """An on-api whose uploads go wrong."""
    with Server(settings) as server:
        yield server


def counted(account: Account) -> int:
    """Bytes that their usage shows."""
    storage = account.client.get("/v1/users/me/usage").json()["storage"]
    return int(storage["bytes"])


def set_quota(server: Server, account: Account, quota: int) -> None:
    """As an administrator does."""
    with account_of(server, admin=True) as admin:
        path = f"/v1/users/{account.id}"
        assert admin.client.patch(path, json={"storage_quota": quota}).status_code == 200


def pins_of(server: Server, here: Peer) -> set[str]:
    """CIDs of the node's pins that are this deployment's."""
    prefix = server.services.names.prefix()
    return {cid for cid, name in here.pins().items() if name.startswith(prefix)}


def wait_until_clean(server: Server, here: Peer, held: set[str]) -> None:
    """Just what is `held` has a pin of ours, no lease is left, nothing is reserved; `fsck` says
    the same."""

    def leases() -> bool:
        with server.services.database.session_scope(write=False) as session:
            return session.scalar(select(Lease.id).limit(1)) is not None

    until(lambda: not leases(), "every lease is gone", 120)
    assert pins_of(server, here) == held
    check_invariants(server.services.database, here.pins().keys())

    async def fsck(services: object) -> object:
        return await services.fsck.run(repair=False, walk=True)  # type: ignore[attr-defined]

    report = beside(server.settings, fsck)
    assert report.clean, report.findings  # type: ignore[attr-defined]


def form(*parts: bytes) -> bytes:
    """A multipart body of files; the last one is not ended."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    return b"\r\n".join(head + part for part in parts)


def send_form(account: Account, body: Iterator[bytes]) -> httpx.Response:
    """Files in one request."""
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    return account.client.post("/v1/files", content=body, headers=headers)


def test_broken_uploads_are_counted_until_they_are_removed(
    failing: Server, proxy: RpcProxy, here: Peer
) -> None:
    """The first part of a form is stored, the second breaks off, again and again: quota and key are
    kept to, and all comes back when the node has let go."""
    with account_of(failing) as ada:
        set_quota(failing, ada, 3 * MIB)
        removing = proxy.hold("pin/rm")
        firsts = [os.urandom(MIB + number) for number in range(2)]
        for number, data in enumerate(firsts):
            pinned = build_file(data).cid

            def body(data: bytes = data, pinned: str = pinned) -> Iterator[bytes]:
                yield form(data, b"begins")
                until(lambda: pinned in here.pins(), "the first part is stored")
                raise ConnectionError("gone")

            with suppress(httpx.TransportError, ConnectionError):
                send_form(ada, body())
            until(lambda n=number: counted(ada) in range((n + 1) * MIB, (n + 2) * MIB), "counted")  # type: ignore[misc]
        answer = ada.client.put("/v1/files?name=x", content=os.urandom(MIB))
        assert answer.json()["error"]["reason"] == "STORAGE_QUOTA_EXCEEDED", answer.text
        removing.open()
        until(lambda: counted(ada) == 0, "it is given back", 60)
        file = ada.upload(os.urandom(2 * MIB))
        wait_until_clean(failing, here, {str(file["cid"])})


def test_a_keys_limit_is_kept_to(failing: Server, proxy: RpcProxy, here: Peer) -> None:
    """Also by a second part that is too much: what the first one took is taken until it is gone."""
    with account_of(failing) as ada:
        key = ada.make_key("files:write", max_bytes=2 * MIB)
        removing = proxy.hold("pin/rm")
        with failing.client(key) as client:
            two = [("file", (str(number), os.urandom(MIB + 1000))) for number in range(2)]
            assert client.post("/v1/files", files=two).status_code == 403
            removing.wait_until_reached()
            assert client.put("/v1/files?name=x", content=os.urandom(MIB)).status_code == 403
            removing.open()
            until(lambda: counted(ada) == 0, "it is given back", 60)
            assert client.put("/v1/files?name=x", content=os.urandom(MIB)).status_code == 201
        held = {str(item["cid"]) for item in ada.client.get("/v1/files").json()["items"]}
        wait_until_clean(failing, here, held)


@pytest.mark.parametrize("visibility", ["public", "private"])
def test_an_answer_that_is_lost(
    failing: Server, proxy: RpcProxy, here: Peer, visibility: str
) -> None:
    """The node has stored and pinned it, and hangs up: nobody knows its CID but by the pin's
    name."""
    with account_of(failing) as ada:
        kept = str(ada.upload(os.urandom(1000))["cid"])
        proxy.cut("add", answer=True)
        query = {"name": "x", "visibility": visibility}
        answer = ada.client.put("/v1/files", params=query, content=os.urandom(MIB))
        assert answer.status_code in {502, 503, 504}, answer.text
        assert len(pins_of(failing, here)) == 2
        proxy.mend()
        wait_until_clean(failing, here, {kept})


def test_what_somebody_else_holds_stays(failing: Server, proxy: RpcProxy, here: Peer) -> None:
    """The same bytes, stored by one user and failed by another, before and meanwhile."""
    data, other = os.urandom(MIB), os.urandom(MIB)
    with account_of(failing) as ada, account_of(failing) as ben:
        held = {str(ada.upload(data)["cid"])}
        proxy.cut("add", answer=True)
        for each in (data, other):
            assert ben.client.put("/v1/files?name=x", content=each).status_code >= 500
        proxy.mend()
        held.add(str(ada.upload(other)["cid"]))
        wait_until_clean(failing, here, held)
        items = ada.client.get("/v1/files").json()["items"]
        read = {ada.client.get(f"/v1/files/{item['id']}/content").content for item in items}
        assert read == {data, other}


def test_a_car_that_fails(failing: Server, proxy: RpcProxy, here: Peer) -> None:
    """With two roots, by a key that ends meanwhile: what came is counted once, until both are let
    go of."""
    [(first, above), (second, below)] = (tree() for _ in range(2))
    car = car_with([first, second], [*above.items(), *below.items()])
    with account_of(failing) as ada, ThreadPoolExecutor() as pool:
        set_quota(failing, ada, MIB)
        made = ada.client.post("/v1/keys", json={"name": "k", "scopes": ["imports:write"]}).json()
        removing, pinning = proxy.hold("pin/rm"), proxy.hold("pin/add", answer=True)
        with failing.client(made["key"]) as client:
            sending = pool.submit(send_car, client, car)
            pinning.wait_until_reached()
            assert ada.client.delete(f"/v1/keys/{made['id']}").status_code == 204
            pinning.open()
            assert sending.result().status_code == 401
        removing.wait_until_reached()
        assert {str(first), str(second)} <= here.pins().keys()
        assert 0 < counted(ada) <= len(car)
        removing.open()
        until(lambda: counted(ada) == 0, "it is given back", 60)
        wait_until_clean(failing, here, set())


def test_a_car_whose_root_was_just_being_unpinned(
    failing: Server, proxy: RpcProxy, here: Peer
) -> None:
    """It is pinned again for the CAR, whose answer is then lost: it goes with what failed."""
    with account_of(failing) as ada, account_of(failing) as ben, ThreadPoolExecutor() as pool:
        root, blocks = tree()
        car, cid = car_with([root], blocks.items()), str(root)
        assert send_car(ada.client, car).status_code == 200
        [held] = ada.client.get("/v1/pins").json()["results"]
        removing = proxy.hold("pin/rm")
        assert ada.client.delete(f"/v1/pins/{held['requestid']}").status_code == 202
        with failing.services.database.session_scope() as session:
            session.execute(update(Content).values(unreferenced_at=utc_now() - timedelta(days=9)))
        removing.wait_until_reached()
        looks = proxy.count("pin/ls", cid)
        sending = pool.submit(send_car, ben.client, car)
        until(lambda: proxy.count("pin/ls", cid) > looks, "the root is looked at")
        proxy.cut("pin/add", answer=True)
        removing.open()
        assert sending.result().status_code >= 500
        proxy.mend()
        wait_until_clean(failing, here, set())


def send_car(client: httpx.Client, car: bytes) -> httpx.Response:
    """To an import of its own."""
    made = client.post("/v1/imports", json={"source": {"kind": "car"}}).json()
    return client.put(f"/v1/imports/{made['id']}/car", content=car)


def test_a_deleted_users_pin(failing: Server, proxy: RpcProxy, here: Peer) -> None:
    """Its content is pinned, the answer is held, and the account goes: nothing is left."""
    with account_of(failing) as ada, account_of(failing, admin=True) as admin:
        cid = here.add(os.urandom(2 * MIB), pinned=False)
        gate = proxy.hold("pin/add", answer=True)
        pin(ada, cid)
        gate.wait_until_reached()
        assert cid in here.pins()
        assert admin.client.delete(f"/v1/users/{ada.id}").status_code == 202

        def gone() -> bool:
            with failing.services.database.session_scope(write=False) as session:
                users = session.scalars(select(UserUsage.user_id)).all()
            return ada.id not in {str(user) for user in users}

        until(gone, "the account is removed", 90)
        gate.open()
        wait_until_clean(failing, here, set())


def test_a_database_restored_from_a_backup(settings: Settings, here: Peer) -> None:
    """A lease that lived in the backup went on and named what users keep: only what it lists is
    removed, the rest is left to `fsck` and its quarantine. One just dead is no backup's."""
    fresh, listed, newer = (here.add(os.urandom(2000), pinned=False) for _ in range(3))
    idle = settings.model_copy(update={"worker": WorkerSettings(embedded=False)})
    with Server(idle) as server:
        names, jobs = server.services.names, [uuid.uuid4(), uuid.uuid4()]
        with server.services.database.session_scope() as session:
            for job, age in zip(jobs, (timedelta(minutes=1), timedelta(hours=3)), strict=True):
                session.add(Lease(id=job, kind="bundles", lease_until=utc_now() - age))
            session.flush()
            session.add(LeasedPin(lease_id=jobs[1], cid=listed))

        async def remove(services: Services) -> FsckReport:
            for cid, job in ((fresh, jobs[0]), (listed, jobs[1]), (newer, jobs[1])):
                await services.node.pin(cid, name=names.of(job), fetch=False)
            await remove_leftovers(services)
            return await services.fsck.run(repair=True, walk=False)

        report = beside(idle, remove)
        assert pins_of(server, here) == {newer}
        assert (report.troubles, report.deferred) == (0, 1)


def test_what_was_stored_again_after_the_backup(settings: Settings, here: Peer) -> None:
    """A failure listed it; what has pinned it since is in no row: its pin stays for `fsck`. One
    that a job of the user's has made goes when that has ended without it."""
    again, kin = (here.add(os.urandom(2000), pinned=False) for _ in range(2))
    idle = settings.model_copy(update={"worker": WorkerSettings(embedded=False)})
    with Server(idle) as server, account_of(server) as ada:
        names, database = server.services.names, server.services.database
        first = uuid.UUID(pin(ada, new_cid()))
        with database.session_scope() as session:
            leftovers.leave(session, uuid.uuid4(), [again, kin])

        async def remove(services: Services) -> FsckReport:
            await services.node.pin(again, name=names.of(uuid.uuid4()), fetch=False)
            await services.node.pin(kin, name=names.of(first), fetch=False)
            await remover_of(services).step()
            with database.session_scope() as session:
                assert session.scalars(select(LeasedPin.cid)).all() == [kin]
                session.get_one(Pin, first).status = "failed"
            await remove_leftovers(services)
            return await services.fsck.run(repair=True, walk=False)

        report = beside(idle, remove)
        assert pins_of(server, here) & {again, kin} == {again}
        assert (report.troubles, report.deferred) == (0, 1)


@pytest.mark.parametrize("looks", [1, 2], ids=["once", "twice"])
def test_who_was_asleep_while_the_worker_looked(settings: Settings, here: Peer, looks: int) -> None:
    """They pin only then, and give up without knowing what: it is looked for anew."""
    idle = settings.model_copy(update={"worker": WorkerSettings(embedded=False)})
    with Server(idle) as server, account_of(server) as ada:
        leases, database = server.services.leases, server.services.database
        holder = JobHolder(uuid.UUID(ada.id))
        asleep = [leases.open(UPLOAD, holder, Announced(1000)) for _ in range(2)]
        ids = [lease.id for lease in asleep]
        with database.session_scope() as session:
            session.execute(update(Lease).values(lease_until=utc_now() - timedelta(minutes=2)))
        release_dead_leases(database)
        with database.session_scope() as session:
            for number in range(looks):
                seen = utc_now() - timedelta(seconds=60 - 10 * number)
                leftovers.mark_swept(session, ids, seen)
        asleep[0].unsure = True
        leases.abandon(asleep[0])
        with database.session_scope() as session:
            leftovers.leave(session, ids[1], (), unsure=True)
        with database.session_scope() as session:
            leftovers.mark_swept(session, ids, utc_now())
        late = [here.add(os.urandom(2000), pinned=False) for _ in ids]

        async def remove(services: Services) -> None:
            for cid, lease in zip(late, asleep, strict=True):
                await services.node.pin(cid, name=lease.pin_name, fetch=False)
            await remove_leftovers(services)

        beside(idle, remove)
        assert not pins_of(server, here) & set(late)


def test_many_that_die_at_once(settings: Settings) -> None:
    """All are noticed, and looked for together."""
    idle = settings.model_copy(update={"worker": WorkerSettings(embedded=False)})
    with Server(idle) as server:
        database, just = server.services.database, utc_now() - timedelta(minutes=1)
        with database.session_scope() as session:
            session.add_all(Lease(kind="upload", lease_until=just) for _ in range(250))

        async def step(services: Services) -> None:
            await remover_of(services).step()

        beside(idle, step)
        with database.session_scope(write=False) as session:
            swept = session.execute(select(Lease.kind, Lease.swept_at.is_not(None)))
            assert [tuple(row) for row in swept] == [("dead", True)] * 250


@contextmanager
def serving(settings: Settings) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`on-api serve` as a process of its own, on the same database and node; killed in the end."""
    port, secret, rpc_auth = free_port(), settings.secret_key, settings.ipfs.rpc_auth
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("ON_API_")},
        "ON_API_HOME": str(settings.home),
        "ON_API_PORT": str(port),
        "ON_API_DATABASE_URL": settings.sqlalchemy_url,
        "ON_API_SECRET_KEY": secret.get_secret_value() if secret else "",
        "ON_API_IPFS__RPC_URL": settings.rpc_url,
        "ON_API_IPFS__GATEWAY_URL": settings.gateway_url,
        "ON_API_IPFS__RPC_AUTH": rpc_auth.get_secret_value() if rpc_auth else "",
        "ON_API_FILES__LEASE_SECONDS": "10",
        "ON_API_WORKER__LEASE_SECONDS": "2",
        "ON_API_WORKER__POLL": "0.1",
        "ON_API_GC__INTERVAL": "0",
        "ON_API_AUTH__SCRYPT_LOG_N": "10",
    }
    url = f"http://127.0.0.1:{port}"
    with (Path(settings.home) / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [ON_API, "serve"], env=environment, cwd=PROJECT, stdout=log, stderr=log
        )
    try:
        until(lambda: process.poll() is not None or _is_ready(url), "on-api is ready", 120)
        assert process.poll() is None, (Path(settings.home) / "serve.log").read_text()
        yield url, process
    finally:
        process.kill()
        process.wait()


def _is_ready(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz", trust_env=False, timeout=5).status_code == 200
    return False


@pytest.mark.timeout(900)
def test_a_kill_between_the_nodes_pin_and_our_commit(
    settings: Settings, proxy: RpcProxy, here: Peer
) -> None:
    """Of every kind of upload and job at once: bundle, private and public file, a form's second
    part, a change of visibility, a pin."""
    idle = settings.model_copy(update={"worker": WorkerSettings(embedded=False)})
    with Server(idle) as server, account_of(server) as ada, account_of(server) as ben:
        file = ada.upload(os.urandom(2 * MIB), "to be private")
        there = here.add(os.urandom(2 * MIB), pinned=False)
        smalls, first = [os.urandom(100 + number) for number in range(12)], os.urandom(2 * MIB)
        before = pins_of(server, here)
        with serving(settings) as (url, process), ThreadPoolExecutor(32) as pool:

            def client_of(account: Account) -> httpx.Client:
                headers = {"Authorization": f"Bearer {account.key}"}
                return httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False)

            def send(account: Account, method: str, path: str, **what: object) -> None:
                with client_of(account) as client, suppress(httpx.TransportError):
                    client.request(method, path, **what)  # type: ignore[arg-type]

            def parts() -> Iterator[bytes]:
                yield form(first, b"")
                sent.wait(60)
                yield os.urandom(MIB) + b"\r\n--b--\r\n"

            sent = threading.Event()
            adding = {"Content-Type": "multipart/form-data; boundary=b"}
            pool.submit(send, ben, "POST", "/v1/files", content=parts(), headers=adding)
            first_cid = build_file(first).cid
            until(lambda: first_cid in here.pins(), "the form's first part is stored", 60)
            pinning = proxy.hold("pin/add", answer=True)
            for number, data in enumerate(smalls):
                pool.submit(send, ada, "PUT", f"/v1/files?name={number}", content=data)
            pinning.wait_until_reached(60)
            storing = proxy.hold("add", answer=True)
            sent.set()
            for query in ("name=a", "name=b&visibility=private"):
                pool.submit(send, ben, "PUT", f"/v1/files?{query}", content=os.urandom(MIB))
            path = f"/v1/files/{file['id']}"
            send(ada, "PATCH", path, json={"visibility": "private"})
            send(ada, "POST", "/v1/pins", json={"cid": there})
            adds = 1 + 1 + 4  # the file before, the form's parts, two files, the change
            until(lambda: proxy.count("add", "") >= adds, "everything is on its way", 60)
            until(lambda: there in here.pins(), "the pin is made", 60)
            # The first part, the bundle, the pin, and four that the node was told to add.
            until(lambda: len(pins_of(server, here) - before) >= 7, "the node has pinned all", 60)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            for gate in (pinning, storing):
                gate.open()
    with Server(settings) as server:
        after = server.client(ada.key)
        with after:
            until(
                lambda: (
                    {p["status"] for p in after.get("/v1/pins").json()["results"]} == {"pinned"}
                ),
                "the pin has its end",
                60,
            )
            until(
                lambda: after.get(f"/v1/files/{file['id']}").json()["visibility"] == "private",
                "the change has its end",
                60,
            )
            files = after.get("/v1/files?limit=1000").json()["items"]
        held = {str(item["cid"]) for item in files} | {there, str(file["cid"])}
        wait_until_clean(server, here, held)
