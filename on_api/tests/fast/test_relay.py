"""Answers that the server has the node give without a scope and a task, beside everything that is
asked the usual way, and what goes that way though it began as one of these."""

from __future__ import annotations

import http.client
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from sqlalchemy import func, select

from on_api.core.models import Traffic
from on_api.core.setting_groups import GatewaySettings
from on_api.public.gateway.app import Gateway
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.deadline import until
from on_api.tests.testing.gateway_corpus import add_folder, raw_client
from on_api.tests.testing.tcp_proxy import Mood, TcpProxy, proxied

LARGE = os.urandom(300_000)
SMALL = os.urandom(5000)


@dataclass
class Place:
    """A server that remembers no answers, and what stands between it and its node's gateway."""

    server: Server
    proxy: TcpProxy
    node: str
    """The gateway's origin."""
    asked: list[str] = field(default_factory=list)
    """What the node was asked for on the usual way."""
    relayed: list[str] = field(default_factory=list)
    """And on the other."""

    @property
    def waiting(self) -> int:
        """How many are being answered."""
        gateway: Gateway = self.server.app.state.gateway
        return gateway.under_way

    def forget(self) -> None:
        """What was asked before."""
        self.asked.clear()
        self.relayed.clear()


def place_of(stack: ExitStack, database: str, kubo: Kubo, home: pytest.TempPathFactory) -> Place:
    """A new one. What its server asks its node is noted."""
    place = urlsplit(str(kubo.ipfs.gateway_url))
    target = (str(place.hostname), int(place.port or 0))
    proxy = stack.enter_context(proxied(lambda: socket.create_connection(target, 5)))
    url = f"http://127.0.0.1:{proxy.port}"
    ipfs = kubo.ipfs.model_copy(
        update={"gateway_url": url, "connect_timeout": 2, "stall_timeout": 2}
    )
    gateway = GatewaySettings(policy="local", cache_bytes=0)
    settings = make_settings(home.mktemp("relay"), database, ipfs=ipfs, gateway=gateway)
    made = Place(Server(settings), proxy, str(kubo.ipfs.gateway_url))
    node = made.server.services.node_gateway
    ask, get_at_once = node.ask, node.get_at_once

    async def noted_ask(method, path, query, headers):  # type: ignore[no-untyped-def]
        made.asked.append(path)
        return await ask(method, path, query, headers)

    def noted_get(path, query, headers, told):  # type: ignore[no-untyped-def]
        begun = get_at_once(path, query, headers, told)
        if begun:
            made.relayed.append(path)
        return begun

    node.ask, node.get_at_once = noted_ask, noted_get  # type: ignore[method-assign]
    stack.enter_context(made.server)
    return made


@pytest.fixture(scope="module")
def place(
    postgres_database: DatabaseMaker, kubo: Kubo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """One for all tests. On PostgreSQL, since SQLite has all verdicts forgotten at any commit."""
    with ExitStack() as stack:
        yield place_of(stack, postgres_database(), kubo, tmp_path_factory)


@pytest.fixture
def folder(place: Place, kubo: Kubo) -> str:
    """A folder's path; its verdict is known, and a connection to the node at hand."""
    files = {"small": SMALL, "large": LARGE, "none": b"", "tiny": os.urandom(9)}
    path = f"/ipfs/{add_folder(kubo, files)}"
    make_known(place, f"{path}/small")
    return path


def make_known(place: Place, path: str) -> None:
    """Have the server know that this small file is served, and a connection to the node at hand."""
    place.forget()

    def is_relayed() -> bool:
        with raw_client(place.server.url) as client:
            assert client(path).body == SMALL
        return bool(place.relayed)

    until(is_relayed, "it is relayed")
    place.forget()


@pytest.fixture
def connection(place: Place) -> Iterator[socket.socket]:
    """A bare connection."""
    with closing(connect(place)) as opened:
        yield opened


def connect(place: Place) -> socket.socket:
    """A new one."""
    parts = urlsplit(place.server.url)
    return socket.create_connection((str(parts.hostname), int(parts.port or 0)), 60)


def get(path: str, more: str = "") -> bytes:
    """A request."""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()


def read(connection: socket.socket) -> tuple[int, http.client.HTTPMessage, bytes]:
    """The next answer."""
    reader = connection.makefile("rb", buffering=0)
    status = int(reader.readline().split(b" ")[1])
    headers = http.client.parse_headers(reader)
    length, body = int(headers["content-length"]), b""
    while len(body) < length:
        body += reader.read(length - len(body)) or b""
    return status, headers, body


def test_what_is_relayed_and_what_only_began_so(
    place: Place, folder: str, connection: socket.socket
) -> None:
    """The node is asked once for each, and its answers are the same."""
    relayed = []
    for path, more, is_relayed in (
        ("/small", "", True),
        ("/small", "Accept: */*\r\n", True),
        ("/small?download=true&filename=x.txt", "", True),
        ("/tiny", "Connection: keep-alive\r\n", True),
        ("/large", "", True),
        ("/none", "", True),
        ("/missing", "", True),
        ("", "", True),
        ("?format=car", "Connection: close\r\n", False),
        ("/small", "Range: bytes=1-3\r\n", False),
        ("/small", "If-None-Match: x\r\n", False),
        ("/small", "Authorization: Bearer x\r\n", False),
        ("//small", "", False),
    ):
        place.forget()
        with closing(connect(place)) as other:
            client = other if "close" in more else connection
            client.sendall(get(folder + path, more))
            if "close" in more:
                assert client.recv(12) == b"HTTP/1.1 200"
                continue
            status, headers, body = read(client)
        assert headers["x-request-id"], path
        assert bool(place.relayed) is is_relayed, path
        if not is_relayed:
            continue
        assert not place.asked, path
        asked = dict(line.split(": ") for line in more.splitlines() if line.startswith("Accept"))
        with raw_client(place.node) as node:
            theirs = node(folder + path, asked)
        assert (status, body) == (theirs.status, theirs.body), path
        for name, value in theirs.headers.items():
            assert name in {"date", "connection", "content-security-policy"} or (
                headers[name] == value
            ), path
        relayed.append(path)
    assert len(relayed) == 8


def test_requests_behind_one_that_waits(
    place: Place, folder: str, connection: socket.socket
) -> None:
    """Together with it, while it waits, and in pieces: answered in their order, each once."""
    small, large = get(f"{folder}/small"), get(f"{folder}/large")
    place.proxy.mood = Mood.HANG
    try:
        connection.sendall(small)
        until(lambda: place.waiting == 1, "it waits")
        connection.sendall(large + small + small[:20])
        until(lambda: place.waiting == 1, "it still does")
    finally:
        place.proxy.mood = Mood.GOOD
    assert [read(connection)[2] for _ in range(3)] == [SMALL, LARGE, SMALL]
    connection.sendall(small[20:] + small)
    assert [read(connection)[2] for _ in range(2)] == [SMALL, SMALL]
    connection.sendall(small)
    assert read(connection)[2] == SMALL
    assert place.waiting == 0


def test_a_node_that_is_not_well(place: Place, folder: str, connection: socket.socket) -> None:
    """What it says or doesn't is told with our words for it, after it was waited for once."""
    for mood, status in ((Mood.HANG, 504), (Mood.CUT, 502), (Mood.GARBAGE, 502)):
        connection.sendall(get(f"{folder}/small"))
        assert read(connection)[0] == 200
        place.forget()
        place.proxy.mood = mood
        try:
            connection.sendall(get(f"{folder}/small"))
            assert read(connection)[0] == status
            assert (len(place.relayed), place.asked) == (1, []), mood
        finally:
            place.proxy.mood = Mood.GOOD
    place.forget()
    place.proxy.mood = Mood.REFUSE
    place.proxy.mood = Mood.GOOD
    connection.sendall(get(f"{folder}/small"))
    assert read(connection)[2] == SMALL  # by another connection
    assert place.waiting == 0


def test_a_client_that_hangs_up(place: Place, folder: str) -> None:
    """Is not waited with, and charged nothing."""
    spent = _sent_bytes(place)
    place.proxy.mood = Mood.HANG
    try:
        with closing(connect(place)) as connection:
            connection.sendall(get(f"{folder}/small"))
            until(lambda: place.waiting == 1, "it waits")
            by_reset = struct.pack("ii", 1, 0)  # else it might still want to read the answer
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, by_reset)
        until(lambda: place.server.connections == 0, "it is gone")
    finally:
        place.proxy.mood = Mood.GOOD
    until(lambda: place.waiting == 0, "nobody waits")
    assert _sent_bytes(place) == spent


def _sent_bytes(place: Place) -> float:
    text = place.server.services.metrics.exposition().decode()
    name = 'on_api_sent_bytes_total{route="/ipfs"} '
    lines = [line for line in text.splitlines() if line.startswith(name)]
    return sum(float(line.removeprefix(name)) for line in lines)


def test_what_goes_out_is_counted(place: Place, connection: socket.socket) -> None:
    """To the byte, and each request."""
    alice = place.server.new_user()
    with alice.client:
        cid = str(alice.upload(os.urandom(len(SMALL)), visibility="public")["cid"])
    place.forget()
    for _ in range(10):
        connection.sendall(get(f"/ipfs/{cid}"))
        assert len(read(connection)[2]) == len(SMALL)
    assert len(place.relayed) > 5
    counted = 10, 10 * len(SMALL)
    until(lambda: _counted(place, cid) == counted, "it is written", 20)


def _counted(place: Place, cid: str) -> tuple[int, int]:
    sums = select(func.sum(Traffic.requests), func.sum(Traffic.bytes_out))
    with place.server.services.database.session_scope(write=False) as session:
        requests, sent = session.execute(
            sums.where(Traffic.cid == cid, Traffic.kind == "gateway")
        ).one()
    return int(requests or 0), int(sent or 0)


def test_a_budget_that_ends(place: Place, connection: socket.socket) -> None:
    """Is kept to the byte: what credit doesn't allow goes the usual way, and is refused there."""
    alice = place.server.new_user()
    admin = place.server.new_user(admin=True)
    with alice.client, admin.client:
        path = _public_file(place, alice)
        budget = {"egress_budget": 3 * len(SMALL) + 10}
        admin.client.patch(f"/v1/users/{alice.id}", json=budget).raise_for_status()
        statuses = []
        for _ in range(5):
            connection.sendall(get(path))
            statuses.append(read(connection)[0])
    assert statuses == [200, 200, 200, 429, 429]
    assert place.relayed


def _public_file(place: Place, account: Account) -> str:
    path = f"/ipfs/{account.upload(SMALL, visibility='public')['cid']}"
    place.forget()
    return path


def test_the_servers_end(
    postgres_database: DatabaseMaker, kubo: Kubo, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Waits for the answer under way, which ends its connection."""
    with ExitStack() as stack:
        place = place_of(stack, postgres_database(), kubo, tmp_path_factory)
        path = f"/ipfs/{add_folder(kubo, {'small': SMALL})}/small"
        make_known(place, path)
        with closing(connect(place)) as connection:
            place.proxy.mood = Mood.HANG
            connection.sendall(get(path))
            until(lambda: place.waiting == 1, "it waits")
            place.server.begin_to_end()
            until(lambda: not _accepts(place), "the server ends")
            place.proxy.mood = Mood.GOOD
            _, headers, body = read(connection)
            assert (headers["connection"], body) == ("close", SMALL)
            assert connection.recv(1) == b""


def _accepts(place: Place) -> bool:
    try:
        connect(place).close()
    except OSError:
        return False
    return True
