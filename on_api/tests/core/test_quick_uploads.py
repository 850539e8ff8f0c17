"""Small uploads that on-api's own server takes without a task are answered as on the usual way, to
the byte, whatever becomes of them."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select, update

from on_api.core.models import Lease, User
from on_api.core.models.database import utc_now
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.contract.rpc_proxy import RpcProxy, held_rpc
from on_api.tests.deadline import until

_NEW_EACH_TIME = re.compile(
    rb'[0-9a-f]{8}-[0-9a-f-]{27}|x-request-id: \w+|urn:on-api:request:\w+|"20\d\d-[^"]*Z"|date: .*'
)


@pytest.fixture(scope="module")
def proxy(kubo: Kubo) -> Iterator[RpcProxy]:
    """Between the server and the node."""
    with held_rpc(str(kubo.ipfs.rpc_url)) as running:
        yield running


@pytest.fixture(scope="module")
def server(
    new_database: DatabaseMaker,
    kubo: Kubo,
    proxy: RpcProxy,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """Behind it."""
    ipfs = kubo.ipfs.model_copy(update={"rpc_url": proxy.url})
    settings: Settings = make_settings(tmp_path_factory.mktemp("home"), new_database(), ipfs=ipfs)
    with Server(settings) as running:
        yield running


@pytest.fixture
def user(server: Server) -> Iterator[Account]:
    """Somebody there."""
    account = server.new_user()
    with account.client:
        yield account


class Taken:
    """Counts what was taken without a task; `off` has nothing taken."""

    def __init__(self, server: Server, patch: pytest.MonkeyPatch) -> None:
        self.times = 0
        self.off = False
        take = server.app.quick_upload

        def counted(*request: Any) -> bool:
            taken = not self.off and take(*request)
            self.times += taken
            return taken

        patch.setattr(server.app, "quick_upload", counted)


@pytest.fixture
def taken(server: Server, monkeypatch: pytest.MonkeyPatch) -> Taken:
    """From here on."""
    return Taken(server, monkeypatch)


def put(account: Account, target: str, body: bytes, **headers: str) -> bytes:
    """A request as one piece."""
    lines = [f"PUT {target} HTTP/1.1", "Host: on-api", f"Content-Length: {len(body)}"]
    lines += [f"Authorization: Bearer {account.key}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def connect(server: Server) -> socket.socket:
    """A connection of its own."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def read(connection: socket.socket) -> bytes:
    """One answer, as it came."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = connection.recv(65536)
        assert piece, answer
        answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def together(server: Server, proxy: RpcProxy, requests: Sequence[bytes]) -> list[bytes]:
    """Send all while two others hold the node's attention, so that they are gathered."""
    nobody = server.new_user()
    gate = proxy.hold("add")
    with nobody.client, ThreadPoolExecutor(2) as pool:
        alone = [pool.submit(nobody.upload, os.urandom(50)) for _ in range(2)]
        gate.wait_until_reached()
        bundler = server.services.uploads._bundler
        until(lambda: bundler._alone == 2, "both are under way")
        connections = [connect(server) for _ in requests]
        for number, (connection, request) in enumerate(zip(connections, requests, strict=True), 1):
            if key := re.search(rb"Bearer (\w+)", request):
                # On SQLite every commit has keys forgotten within half a second.
                server.services.authenticator.learn(key[1].decode())
            connection.sendall(request)
            until(lambda n=number: len(bundler._waiting) >= n, "it waits")  # type: ignore[misc]
        gate.open()
        for upload in alone:
            upload.result()
        answers = [read(connection) for connection in connections]
        for connection in connections:
            connection.close()
    return answers


def both_ways(
    server: Server, proxy: RpcProxy, taken: Taken, requests: Sequence[bytes]
) -> list[bytes]:
    """Send all, then again the usual way; both must be alike. Returns the first answers."""
    server.services.capacity._looked_at = time.monotonic()
    before = taken.times
    quick = together(server, proxy, requests)
    assert taken.times - before >= len(requests) - 1  # a key is forgotten now and then
    taken.off = True
    usual = together(server, proxy, requests)
    taken.off = False
    for one, other, request in zip(quick, usual, requests, strict=True):
        assert seen(one) == seen(other), request[:200]
    return quick


def seen(answer: bytes) -> bytes:
    """All of it but what differs between any two."""
    return _NEW_EACH_TIME.sub(b"NEW", answer)


def status(answer: bytes) -> int:
    """Of an answer."""
    return int(answer[9:12])


def test_what_is_stored(server: Server, proxy: RpcProxy, taken: Taken, user: Account) -> None:
    """Names, metas, types as they come; both versions; the bytes are there and are charged."""
    bodies = [os.urandom(100 + n) for n in range(5)] + [b"%PDF-1.7 \n", b"some text"]
    requests = [
        put(user, "/v1/files?name=plain", bodies[0]),
        put(user, "/v2/files?name=%E5%9C%B0%E5%9B%B3%20'%22%5C.pdf", bodies[1]),
        put(user, "/v1/files?name=x&visibility=public", bodies[2], Content_Type="text/x; a=b"),
        put(
            user, "/v1/files?meta=%7B%22a%22:%5B1.5,1e300,null,%22%C3%A4%22%5D%7D&name=m", bodies[3]
        ),
        put(user, "/v1/files?name=c", bodies[4], Content_Type="application/x-www-form-urlencoded"),
        put(user, "/v1/files?name=d", bodies[5]),
        put(user, "/v2/files?name=e", bodies[6], Accept="*/*", User_Agent="x"),
    ]
    answers = both_ways(server, proxy, taken, requests)
    assert {status(answer) for answer in answers} == {201}
    items = user.client.get("/v1/files").json()["items"]
    assert len(items) == 2 * len(bodies)
    stored = [user.client.get(f"/v1/files/{item['id']}/content").content for item in items]
    assert sorted(stored) == sorted(bodies * 2)
    usage = user.client.get("/v1/users/me/usage").json()
    assert usage["storage"]["bytes"] == sum(map(len, bodies))


@pytest.mark.parametrize("command", ["dag/import", "pin/add"])
def test_the_node_fails(
    server: Server, proxy: RpcProxy, taken: Taken, user: Account, command: str
) -> None:
    """Everyone hears of it in their version's words, and nothing is recorded."""
    proxy.cut(command)
    requests = [put(user, f"/v{n % 2 + 1}/files?name=x", os.urandom(50)) for n in range(4)]
    try:
        answers = both_ways(server, proxy, taken, requests)
    finally:
        proxy.mend()
    assert {status(answer) for answer in answers} == {502}
    assert user.client.get("/v1/files").json()["count"] == 0


def test_who_may_not(server: Server, proxy: RpcProxy, taken: Taken, user: Account) -> None:
    """Over their quota, or deleted meanwhile: told as ever, one by one; nobody else is."""
    poor, gone = server.new_user(), server.new_user()
    poor.client.close()
    gone.client.close()
    database = server.services.database
    with database.session_scope() as session:
        mine = User.username == poor.username
        session.execute(update(User).where(mine).values(storage_quota=10))
    requests = [put(who, "/v1/files?name=x", os.urandom(20)) for who in (user, user, poor, poor)]
    answers = both_ways(server, proxy, taken, requests)
    assert [status(answer) for answer in answers] == [201, 201, 403, 403]
    gate = proxy.hold("dag/import")
    with ThreadPoolExecutor() as pool:
        everyone = [put(who, "/v1/files?name=x", os.urandom(20)) for who in (user, gone)]
        sending = pool.submit(together, server, proxy, everyone)
        gate.wait_until_reached()
        with database.session_scope() as session:
            mine = User.username == gone.username
            session.execute(update(User).where(mine).values(deleted_at=utc_now()))
        gate.open()
        assert status(sending.result()[0]) == 201


def test_what_is_unusual_goes_the_usual_way(
    server: Server, proxy: RpcProxy, taken: Taken, user: Account
) -> None:
    """Asked while others are gathered, and answered all the same."""
    requests = [
        put(user, "/v1/files?name=x&visibility=private", b"secret"),
        put(user, "/v1/files?name=x", b"1", Idempotency_Key="a-key"),
        put(user, "/v1/files?name=x&name=x", b"2"),
        put(user, "http://on-api/v1/files?name=x", b"3"),
    ]
    answers = together(server, proxy, requests)
    assert [status(answer) for answer in answers] == [201] * 4
    assert not taken.times


def test_requests_behind_it_and_in_pieces(
    server: Server, proxy: RpcProxy, taken: Taken, user: Account
) -> None:
    """Two more on the same connection are answered in their order; a body that comes later is the
    same file."""
    server.services.capacity._looked_at = time.monotonic()
    first, last = os.urandom(100), os.urandom(200)
    get = f"GET /v1/files?limit=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {user.key}\r\n\r\n"
    whole = put(user, "/v1/files?name=first", first) + get.encode()
    pieces = put(user, "/v1/files?name=last", last)
    [answer] = together(server, proxy, [whole])
    assert taken.times <= 1
    assert status(answer) == 201
    with connect(server) as connection:
        connection.sendall(pieces[:-150])
        time.sleep(0.05)
        connection.sendall(pieces[-150:-50])
        time.sleep(0.05)
        connection.sendall(pieces[-50:] + whole)
        assert status(read(connection)) == 201
        assert b'"first"' in read(connection)
        assert b'"count":3' in read(connection)
    [newest, middle, _] = user.client.get("/v1/files").json()["items"]
    assert user.client.get(f"/v1/files/{newest['id']}/content").content == first
    assert user.client.get(f"/v1/files/{middle['id']}/content").content == last


def test_its_lease_ends_soon(server: Server, proxy: RpcProxy, taken: Taken, user: Account) -> None:
    """Nothing is left over when nobody uploads any more."""
    together(server, proxy, [put(user, "/v1/files?name=x", os.urandom(20)) for _ in range(3)])

    def leases() -> int:
        with server.services.database.session_scope(write=False) as session:
            return len(session.scalars(select(Lease.id).where(Lease.lease_until > utc_now())).all())

    until(lambda: not leases(), "the lease has ended")
