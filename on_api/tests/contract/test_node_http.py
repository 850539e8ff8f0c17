"""Our client for the node's gateway, against a server that does what it is told, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from on_api.core.errors import NodeError, NodeTimeout, NodeTruncated, NodeUnavailable
from on_api.core.ipfs.gateway_client.client import NodeHttp
from on_api.core.ipfs.gateway_client.connection import (
    MAX_HEAD_BYTES,
    MOST_WAITING_BYTES,
    NodeAnswer,
    Stale,
)
from on_api.core.ipfs.gateway_client.gateway import MOST_BYTES_BY_SOCKET, NodeGateway
from on_api.core.setting_groups import IpfsSettings, NodeSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import free_port

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LARGE = bytes(range(256)) * 4096
MIB = 1024 * 1024

Speech = Callable[[asyncio.StreamWriter], Awaitable[None]]


def sized(body: bytes, more: bytes = b"") -> bytes:
    """A regular answer."""
    return OK + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


HELLO = sized(b"hello")


@dataclass
class Node:
    """What it heard, and what it says to each request in turn: bytes, and None to hang up."""

    http: NodeHttp
    url: str
    heard: list[bytes] = field(default_factory=list)
    connections: int = 0
    answers: list[list[bytes | Speech | None]] = field(default_factory=list)

    def says(self, *parts: bytes | Speech | None) -> None:
        """To the next request."""
        self.answers.append(list(parts))

    async def get(self, target: str = "/x", method: str = "GET") -> bytes:
        """All of an answer's body."""
        async with asyncio.timeout(10):
            answer = await self.http.ask(method, target)
            return await body_of(answer)


async def body_of(answer: NodeAnswer) -> bytes:
    """All of it."""
    return b"".join([chunk async for chunk in answer.chunks()])


@pytest.fixture(name="node")
async def listening() -> AsyncIterator[Node]:
    """A node, and a client with short limits."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        node.connections += 1
        try:
            while True:
                node.heard.append(await reader.readuntil(b"\r\n\r\n"))
                for part in node.answers.pop(0):
                    if part is None:
                        return
                    if isinstance(part, bytes):
                        writer.write(part)
                        await writer.drain()
                    else:
                        await part(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    limits = IpfsSettings(rpc_url=url, gateway_url=url, connect_timeout=0.5, stall_timeout=0.5)
    node = Node(NodeHttp(url, limits), url)
    try:
        yield node
    finally:
        await node.http.close()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def pause(_: asyncio.StreamWriter) -> None:
    """What was written before goes out by itself."""
    await asyncio.sleep(0.001)


async def hang(_: asyncio.StreamWriter) -> None:
    """Say nothing more."""
    await asyncio.Event().wait()


def in_pieces(data: bytes, size: int) -> list[bytes | Speech | None]:
    """With a pause behind each."""
    parts: list[bytes | Speech | None] = []
    for start in range(0, len(data), size):
        parts += (data[start : start + size], pause)
    return parts


@pytest.mark.parametrize("size", [1, 7, 10_000_000])
@pytest.mark.parametrize(
    ("said", "body"),
    [
        (HELLO, b"hello"),
        (sized(b""), b""),
        (CHUNKED + b"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nX-Trailer: y\r\n\r\n", b"hello"),
        (b"HTTP/1.1 103 Early\r\nLink: </x>\r\n\r\n" + HELLO, b"hello"),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
    ids=["sized", "empty", "chunked", "interim", "304", "204"],
)
async def test_every_way_to_end(node: Node, said: bytes, body: bytes, size: int) -> None:
    """However its bytes come, and the connection goes on."""
    node.says(*in_pieces(said, size))
    node.says(HELLO)
    assert await node.get() == body
    assert await node.get() == b"hello"
    assert node.connections == 1


async def test_a_large_body(node: Node) -> None:
    """With its length, in chunks, and to the connection's end."""
    node.says(sized(LARGE))
    node.says(CHUNKED, b"%x\r\n" % len(LARGE) + LARGE + b"\r\n0\r\n\r\n")
    node.says(OK + b"\r\n", LARGE, None)
    for _ in range(3):
        assert await node.get() == LARGE
    assert node.connections == 1


async def test_what_is_asked(node: Node) -> None:
    """Nothing of our own is added; HEAD has no body whatever it says; headers come as they are."""
    node.says(sized(b"", b"X-A:  1 \r\nX-B:\r\nx-a: 2\r\n"))
    node.says(OK + b"Content-Length: 5\r\n\r\n")
    answer = await node.http.ask("GET", "/ipfs/x%20y?format=raw", [("Range", "bytes=1-2")])
    assert answer.headers == [
        (b"x-a", b"1"), (b"x-b", b""), (b"x-a", b"2"), (b"content-length", b"0")
    ]  # fmt: skip
    head = await node.http.ask("HEAD", "/y")
    assert (head.status, head.length, head.whole) == (200, 0, b"")
    host = b"Host: " + node.heard[0].partition(b"Host: ")[2].partition(b"\r\n")[0]
    assert node.heard == [
        b"GET /ipfs/x%20y?format=raw HTTP/1.1\r\n" + host + b"\r\nRange: bytes=1-2\r\n\r\n",
        b"HEAD /y HTTP/1.1\r\n" + host + b"\r\n\r\n",
    ]


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "/\u00e4", ""])
async def test_what_can_not_be_asked(node: Node, target: str) -> None:
    """No line of a request's may hold another."""
    with pytest.raises(NodeError):
        await node.http.ask("GET", target)
    with pytest.raises(NodeError):
        await node.http.ask("GET", "/x", [("Accept", "a\r\nX: y")])
    assert not node.heard


async def test_a_connection_that_had_ended(node: Node) -> None:
    """Unnoticed, is replaced by another one; the request is not lost."""
    node.says(HELLO)
    node.says(None)
    node.says(HELLO, None)
    node.says(HELLO)
    for _ in range(3):
        assert await node.get() == b"hello"
    assert (len(node.heard), node.connections) == (4, 3)


async def test_an_answer_that_had_begun_is_not_asked_for_again(node: Node) -> None:
    """Also on a connection that was kept."""
    node.says(HELLO)
    node.says(b"HTTP/1.1 2", None)
    assert await node.get() == b"hello"
    with pytest.raises(NodeTruncated):
        await node.get()
    assert len(node.heard) == 2


async def test_a_new_connection_that_ends_at_once(node: Node) -> None:
    """Is an error: whoever does that does it again."""
    node.says(None)
    with pytest.raises(NodeTruncated):
        await node.get()
    assert len(node.heard) == 1


@pytest.mark.parametrize(
    "parts",
    [
        [HELLO[:-1], None],
        [HELLO[:-5], None],
        [sized(LARGE)[:-1], None],
        [CHUNKED, b"5\r\nhel", None],
        [CHUNKED, b"5\r\nhello\r\n", None],
        [CHUNKED, b"5\r\nhello\r\n0\r\n", None],
        [CHUNKED, b"5\r\nhello\r\n0\r\nX-Stream-Error: block was not found\r\n\r\n"],
    ],
)
async def test_what_is_cut_is_seen_to_be_cut(node: Node, parts: list[bytes | None]) -> None:
    """A trailer of Kubo's counts as a cut."""
    node.says(*parts)
    with pytest.raises(NodeTruncated):
        await node.get()


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 99 X\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        OK + b"Content-Length: -5\r\n\r\nhello",
        OK + b"Transfer-Encoding: gzip\r\n\r\nhello",
        CHUNKED + b"g\r\nhello\r\n0\r\n\r\n",
        OK + b"X-A: 1\r\n X-Folded: 2\r\nContent-Length: 0\r\n\r\n",
        OK + b"X-A: \x00\r\nContent-Length: 0\r\n\r\n",
        sized(b"", b"X-Large: " + b"y" * MAX_HEAD_BYTES + b"\r\n"),
        OK + b"X-Endless: " + b"y" * 3 * MAX_HEAD_BYTES,
        CHUNKED + b"1\r\nx\r\n0\r\nX-Endless: " + b"y" * 600_000,
        CHUNKED + b"1;" + b"y" * 600_000,
        b"HTTP/1.1 103 Early\r\n\r\n" * 10_000,
    ],
)
async def test_what_is_no_answer(node: Node, said: bytes) -> None:
    """Is an error and no more, in bounded memory; the next request has a connection of its own."""
    node.says(*in_pieces(said, 16_384))
    node.says(HELLO)
    with pytest.raises(NodeError):
        await node.get()
    assert await node.get() == b"hello"
    assert node.connections == 2


@pytest.mark.parametrize("more", [b"more", HELLO, b"HTTP/1.1 200 OK\r\nX-Stream-Error: x\r\n"])
@pytest.mark.parametrize("size", [5, 100_000])
async def test_more_than_was_announced(node: Node, more: bytes, size: int) -> None:
    """Is nobody's answer."""
    body = b"x" * size
    for said in (sized(body), CHUNKED + b"%x\r\n" % size + body + b"\r\n0\r\n\r\n"):
        node.says(said + more, pause)
        assert await node.get() == body
        node.says(HELLO)
        assert await node.get() == b"hello"
    node.says(OK + b"Content-Length: 5\r\n\r\n" + more, pause)
    assert await node.get(method="HEAD") == b""
    node.says(HELLO)
    assert await node.get() == b"hello"


@pytest.mark.parametrize("parts", [[hang], [HELLO[:20], hang], [HELLO[:-1], hang],
                                   [sized(LARGE)[:-1], hang], [CHUNKED, hang]])  # fmt: skip
async def test_a_node_that_stands_still(node: Node, parts: list[bytes | Speech]) -> None:
    """Is given up in bounded time."""
    node.says(*parts)
    with pytest.raises(NodeTimeout):
        await node.get()


async def test_a_socket_beside_the_port(node: Node, tmp_path: Path) -> None:
    """Is what is asked, as long as somebody listens there."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(HELLO)
        writer.close()

    path = tmp_path / "s"
    node.http = NodeHttp(node.url, IpfsSettings(connect_timeout=0.5), path)
    node.says(HELLO, None)
    assert await node.get() == b"hello"
    assert len(node.heard) == 1
    server = await asyncio.start_unix_server(serve, path)
    try:
        for _ in range(2):
            assert await node.get() == b"hello"
    finally:
        server.close()
    assert len(heard) == 2
    assert b"Host: " + node.url.removeprefix("http://").encode() in heard[0]
    node.says(HELLO)
    assert await node.get() == b"hello"  # what is left of it answers nobody
    assert len(node.heard) == 2


async def test_small_by_the_socket_large_by_the_port(tmp_path: Path) -> None:
    """Who can't wait is answered by the node's own socket once there is a connection; what turns
    out to be large is to be asked for once more."""
    bodies = {b"/small": b"small", b"/large": bytes(MOST_BYTES_BY_SOCKET + 1)}
    serving: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(sized(bodies[head.split(b" ")[1]]))
                await writer.drain()
        writer.close()

    node = NodeSettings(gateway_port=free_port())
    gateway = NodeGateway(Settings(home=tmp_path, node=node, ipfs=IpfsSettings()))
    said: asyncio.Queue[NodeAnswer | NodeError | Stale] = asyncio.Queue()
    (tmp_path / "ipfs").mkdir()
    # No port: what is answered comes by the socket.
    server = await asyncio.start_unix_server(serve, tmp_path / "ipfs" / "gateway.sock")
    try:
        async with asyncio.timeout(10):
            for path in ("/small", "/large", "/small"):
                while not gateway.get_at_once(path, "", [], said.put_nowait):
                    await asyncio.sleep(0.001)
                answer = await said.get()
                if path == "/large":
                    assert isinstance(answer, Stale)
                else:
                    assert isinstance(answer, NodeAnswer)
                    assert answer.whole == b"small"
        with pytest.raises(NodeUnavailable):
            await gateway.ask("GET", "/large", "", [])
    finally:
        await gateway.close()
        await asyncio.gather(*filter(None, serving))
        server.close()


async def test_nobody_listens() -> None:
    """Is told as that."""
    limits = IpfsSettings(connect_timeout=0.5)
    with pytest.raises(NodeUnavailable):
        await NodeHttp(f"http://127.0.0.1:{free_port()}", limits).ask("GET", "/x")


async def test_a_slow_reader(node: Node) -> None:
    """Has the node wait: little is kept in memory, and no clock of the node's runs."""
    written = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal written
        for _ in range(64):
            writer.write(bytes(MIB))
            await writer.drain()
            written += MIB

    node.says(OK + b"Content-Length: %d\r\n\r\n" % (64 * MIB), flood)
    answer = await node.http.ask("GET", "/x")
    await asyncio.sleep(1)  # twice the stall time-out: the thing under test
    assert written < 32 * MIB
    assert answer.waiting <= MOST_WAITING_BYTES + 512 * 1024
    assert len(await body_of(answer)) == 64 * MIB


async def test_who_goes_away(node: Node) -> None:
    """Cancelled or closed: the node's work ends, and what it would have said is nobody's."""
    ended = asyncio.Event()

    async def until_it_ends(writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(b"1\r\nx\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    async with asyncio.timeout(10):
        node.says(CHUNKED, until_it_ends)
        answer = await node.http.ask("GET", "/x")
        answer.close()
        with pytest.raises(NodeTruncated):
            await body_of(answer)
        await ended.wait()
        node.says(hang)
        asking = asyncio.create_task(node.get())
        while len(node.heard) < 2:
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        node.says(HELLO)
        assert await node.get() == b"hello"
        assert node.connections == 3


async def test_many_at_once(node: Node) -> None:
    """Each has its own answer, over no more connections than there are requests."""
    for _ in range(3):
        for _ in range(20):
            node.says(pause, HELLO)
        assert await asyncio.gather(*[node.get() for _ in range(20)]) == [b"hello"] * 20
    assert node.connections <= 20
