"""`/ipfs` when things break: the node gone, hanging or cut, blocks missing, clients hanging up."""

from __future__ import annotations

import http.client
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from on_api.core.ipfs.formats.endings import CarEnding, TarEnding
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.setting_groups import GatewaySettings
from on_api.tests.conftest import DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.blockstore import Blockstore
from on_api.tests.testing.deadline import until
from on_api.tests.testing.gateway_corpus import Answer, add_folder, raw_client
from on_api.tests.testing.tcp_proxy import Mood, TcpProxy, proxied

MIB = 1024 * 1024
BOUND = 30
"""Seconds for any answer, on any machine: connecting and standing still may take 3 together, and
what hangs does so for ever."""


@dataclass(frozen=True)
class Way:
    """A server, and what stands between it and its node's gateway."""

    server: Server
    proxy: TcpProxy

    def ask(self, target: str, method: str = "GET") -> Answer:
        """A request of its own connection, in bounded time."""
        started = time.monotonic()
        try:
            with raw_client(self.server.url) as client:
                return client(target, method=method)
        finally:
            assert time.monotonic() - started < BOUND


@pytest.fixture(scope="module")
def way(
    sqlite_database: DatabaseMaker, kubo: Kubo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Way]:
    """Policy `local`, so that what is on the node can be asked for as it is."""
    place = urlsplit(str(kubo.ipfs.gateway_url))
    target = (str(place.hostname), int(place.port or 0))
    with ExitStack() as stack:
        proxy = stack.enter_context(proxied(lambda: socket.create_connection(target, 5)))
        limits = {"connect_timeout": 1, "stall_timeout": 2}
        ipfs = kubo.ipfs.model_copy(
            update={"gateway_url": f"http://127.0.0.1:{proxy.port}", **limits}
        )
        settings = make_settings(
            tmp_path_factory.mktemp("faults"),
            sqlite_database(),
            ipfs=ipfs,
            gateway=GatewaySettings(policy="local"),
        )
        yield Way(stack.enter_context(Server(settings)), proxy)


def must_fail(way: Way, target: str) -> None:
    """An error where nothing has been sent yet, else an answer that is seen to be cut."""
    with suppress(http.client.IncompleteRead):
        assert way.ask(target).status == 502


@pytest.fixture(scope="module")
def large(kubo: Kubo) -> str:
    """The path of a file of 8 MiB."""
    return f"/ipfs/{add_folder(kubo, {'large': os.urandom(8 * MIB)})}/large"


@pytest.mark.parametrize(
    ("mood", "statuses"),
    [
        (Mood.REFUSE, {502, 503}),
        (Mood.HANG, {504}),
        (Mood.CUT, {502}),
        (Mood.GARBAGE, {502}),
    ],
)
def test_a_node_that_is_not_well(way: Way, kubo: Kubo, mood: Mood, statuses: set[int]) -> None:
    """An error in bounded time that says when to try again; what is in memory is still there; all
    is well again with the node."""
    folder = add_folder(kubo, {"known": os.urandom(9000), "other": os.urandom(9000)})
    known, other = f"/ipfs/{folder}/known", f"/ipfs/{folder}/other"
    assert way.ask(known).status == 200
    way.proxy.mood = mood
    try:
        for method in ("GET", "HEAD"):
            answer = way.ask(other, method)
            assert answer.status in statuses
            assert int(answer.headers["retry-after"]) > 0
        assert way.ask(known).status == 200
    finally:
        way.proxy.mood = Mood.GOOD
    assert way.ask(other).status == 200


def test_an_answer_that_the_node_cuts_is_seen_to_be_cut(way: Way, large: str) -> None:
    """With its length announced, and without."""
    way.proxy.mood = Mood.CUT_LATE
    try:
        for target in (large, f"{large}?format=car", f"{large}?format=tar"):
            must_fail(way, target)
    finally:
        way.proxy.mood = Mood.GOOD
    assert len(way.ask(large).body) == 8 * MIB


def read_to_its_end(connection: socket.socket) -> None:
    """All that comes."""
    while connection.recv(MIB):
        pass


def test_a_cut_answer_to_http_1_0_ends_with_a_reset(way: Way, large: str) -> None:
    """It has neither length nor chunks: any other end would look like its own."""
    way.proxy.mood = Mood.CUT_LATE
    try:
        with raw_connection(way.server) as connection:
            connection.sendall(f"GET {large}?format=car HTTP/1.0\r\nHost: x\r\n\r\n".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            with pytest.raises(ConnectionResetError):
                read_to_its_end(connection)
    finally:
        way.proxy.mood = Mood.GOOD


def test_a_node_that_stops_in_the_middle(way: Way, large: str) -> None:
    """Is waited for as long as it may stand still, and no longer."""
    with raw_connection(way.server) as connection:
        # Should all of it be in the kernel's buffers already, the answer ends by itself.
        connection.sendall(f"GET {large} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        way.proxy.mood = Mood.HANG
        try:
            connection.settimeout(BOUND)
            read_to_its_end(connection)
        finally:
            way.proxy.mood = Mood.GOOD


def test_a_client_that_hangs_up_ends_the_nodes_work(way: Way, large: str) -> None:
    """Also while the node is what is waited for."""
    until(lambda: way.proxy.connections <= 1, "those before are over", 20)
    before = way.proxy.connections
    with raw_connection(way.server) as connection:
        connection.sendall(f"GET {large}?format=car HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert way.proxy.connections >= before
    until(lambda: way.proxy.connections <= before, "the node's answer is let go of", BOUND)


def raw_connection(server: Server) -> socket.socket:
    """A connection that takes in little by itself."""
    place = urlsplit(server.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    connection.connect((str(place.hostname), int(place.port or 0)))
    return connection


def test_missing_blocks_are_no_short_answers(way: Way, kubo: Kubo) -> None:
    """A file with a hole, and its CAR and tar, which the node ends with words and a regular end."""
    data = os.urandom(3 * MIB)
    folder = add_folder(kubo, {"f": data, "s": b"small"})
    leaf = [node.cid for node in build_file(data).walk() if node.cid.startswith("bafkrei")][1]
    paths = [
        f"/ipfs/{folder}/f", f"/ipfs/{folder}/f?format=car", f"/ipfs/{folder}?format=car",
        f"/ipfs/{folder}/f?format=tar", f"/ipfs/{folder}?format=tar",
    ]  # fmt: skip
    for path in paths:
        assert len(way.ask(path).body) >= len(data)
    Blockstore(kubo.home / "ipfs").take(leaf)
    for path in paths:
        must_fail(way, path)


def test_a_block_that_is_not_what_its_cid_says_is_not_remembered(way: Way, kubo: Kubo) -> None:
    """Nor given out."""
    data = os.urandom(9000)
    root = build_file(data).cid
    folder = add_folder(kubo, {"f": data})
    assert way.ask(f"/ipfs/{folder}/f").body == data
    blocks = Blockstore(kubo.home / "ipfs")
    blocks.put(root, data[::-1])
    try:
        assert way.ask(f"/ipfs/{root}").status == 502
    finally:
        blocks.put(root, data)
    assert way.ask(f"/ipfs/{root}").body == data


@pytest.mark.parametrize("piece", [1, 7, 100, 10_000_000])
def test_endings(way: Way, kubo: Kubo, piece: int) -> None:
    """In pieces of any size: whole ones are, and no shorter nor longer ones."""
    folder = add_folder(kubo, {"a": b"a" * 5000, "b": b"", "c/d": os.urandom(200)})
    car = way.ask(f"/ipfs/{folder}?format=car").body
    tar = way.ask(f"/ipfs/{folder}?format=tar").body
    said = b"\n\n[Gateway Error: CAR stream truncated, response is incomplete]"

    def is_whole(ending: CarEnding | TarEnding, body: bytes) -> bool:
        for start in range(0, len(body), piece):
            ending.feed(body[start : start + piece])
        return ending.is_whole

    assert is_whole(CarEnding(), car)
    assert is_whole(TarEnding(), tar)
    for spoilt in (b"", car[:-1], car[:100], car + said, car + b"\x0b" + said[1:12], car + b"\x00"):
        assert not is_whole(CarEnding(), spoilt)
    for spoilt in (b"", tar[:-1], tar[:-512], tar + b"failed to fetch all nodes", tar[:5120]):
        assert not is_whole(TarEnding(), spoilt)
