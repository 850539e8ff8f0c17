"""Large bodies, which are received past the parser: whole, and the connection goes on as if nothing
had been."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from on_api.core.setting_groups import FilesSettings
from on_api.core.streams.blocks import (
    LEAST_BYTES,
    MOST_BYTES,
    TOGETHER_BYTES,
    BlockRequest,
    BufferPool,
    MemoryBlock,
)
from on_api.fast import large_bodies
from on_api.fast.large_bodies import LARGE_BYTES, PATIENCE_SECONDS
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.deadline import until

IDLE_SECONDS = 4
BODY = os.urandom(3 * MOST_BYTES + 12_345)


@pytest.fixture(scope="module")
def server(
    sqlite_database: DatabaseMaker, kubo: Kubo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that soon takes a client for gone."""
    settings = make_settings(
        tmp_path_factory.mktemp("home"),
        sqlite_database(),
        ipfs=kubo.ipfs,
        files=FilesSettings(idle_timeout=IDLE_SECONDS),
    )
    with Server(settings) as running:
        yield running


class Connection:
    """HTTP by hand, over one connection."""

    def __init__(self, server: Server, key: str) -> None:
        host, _, port = server.url.removeprefix("http://").partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.common = f"Host: x\r\nAuthorization: Bearer {key}\r\n"
        self._said = b""

    def head(self, request: str, length: int, *more: str) -> bytes:
        """A request without its body."""
        lines = "".join(f"{line}\r\n" for line in more)
        return (
            f"{request} HTTP/1.1\r\n{self.common}Content-Length: {length}\r\n{lines}\r\n".encode()
        )

    def send(self, *pieces: bytes) -> None:
        """Say it."""
        for piece in pieces:
            self.socket.sendall(piece)

    def answer(self) -> tuple[int, dict[str, object]]:
        """The next status, and its JSON."""
        head = self.until_said(b"\r\n\r\n").decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        while len(self._said) < length:
            self._hear()
        body, self._said = self._said[:length], self._said[length:]
        return int(head.split()[1]), json.loads(body)

    def until_said(self, end: bytes) -> bytes:
        """What is said until then."""
        while end not in self._said:
            self._hear()
        said, _, self._said = self._said.partition(end)
        return said

    def _hear(self) -> None:
        data = self.socket.recv(65536)
        assert data, "the connection has ended"
        self._said += data


@pytest.fixture(autouse=True)
def without_cyclic_collector() -> Iterator[None]:
    """Memory is given back by whoever has it, not when Python happens to look for cycles: an
    exception's frames are such a cycle."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def connection(server: Server, alice: Account) -> Iterator[Connection]:
    """A connection of Alice's."""
    opened = Connection(server, alice.key)
    with closing(opened.socket):
        yield opened


def is_body(file: dict[str, object], body: bytes = BODY) -> bool:
    """Whether all of it came, in order."""
    return (file["size"], file["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


def form(*parts: tuple[str, bytes]) -> bytes:
    """Parts of a form; a name goes on to the end of its line."""
    lines = [
        f'--x\r\nContent-Disposition: form-data; name="{name}\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in parts
    ]
    return b"".join(lines) + b"--x--\r\n"


FORM = 'Content-Type: multipart/form-data; boundary="x"'
FILE = 'file"; filename="f"'


@pytest.mark.parametrize("pieces", [1, 7])
def test_one_after_the_other_over_one_connection(connection: Connection, pieces: int) -> None:
    """Bodies in one piece with their heads or in several, each followed at once by the next."""
    put = connection.head("PUT /v1/files?name=a", len(BODY)) + BODY
    data = form(('name"', b"b"), (FILE, BODY))
    post = connection.head("POST /v1/files", len(data), FORM) + data
    get = connection.head("GET /v1/files", 0)
    stream = put + post + get + put
    step = -(-len(stream) // pieces)
    connection.send(*(stream[start : start + step] for start in range(0, len(stream), step)))
    answers = [connection.answer() for _ in range(4)]
    assert [status for status, _ in answers] == [201, 201, 200, 201]
    assert all(is_body(answers[index][1]) for index in (0, 1, 3))
    assert answers[2][1]["count"] == 2


def test_the_client_is_told_to_go_on(connection: Connection) -> None:
    """`Expect: 100-continue`, as curl sends it."""
    connection.send(connection.head("PUT /v1/files?name=a", len(BODY), "Expect: 100-continue"))
    assert connection.until_said(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
    connection.send(BODY)
    status, file = connection.answer()
    assert (status, is_body(file)) == (201, True)


def test_refused_in_the_middle(server: Server, connection: Connection) -> None:
    """The answer comes while the client still sends, and by then the body's memory is given back;
    the rest is passed over, and then the next request is heard."""
    wrong = form((FILE, BODY), ('unknown"', b"x"), (FILE, BODY))
    connection.send(connection.head("POST /v1/files", len(wrong), FORM))
    end = len(wrong) - len(BODY) // 2
    connection.send(wrong[:end])
    status, refusal = connection.answer()
    assert status == 400, refusal
    assert server.services.buffer_pool.held == 0
    connection.send(wrong[end:], connection.head("PUT /v1/files?name=a", len(BODY)), BODY)
    status, file = connection.answer()
    assert (status, is_body(file)) == (201, True)


def test_slow_is_not_idle(connection: Connection) -> None:
    """Who sends a little within the limit again and again is waited for, for longer than it."""
    body = BODY[: LARGE_BYTES + 100]
    connection.send(connection.head("PUT /v1/files?name=a", len(body)))
    began = time.monotonic()
    sent = 0
    while time.monotonic() - began < 1.5 * IDLE_SECONDS:
        connection.send(body[sent : sent + 100])
        sent += 100
        time.sleep(PATIENCE_SECONDS)  # the pace is the thing under test
    connection.send(body[sent:])
    status, file = connection.answer()
    assert (status, is_body(file, body)) == (201, True)


def test_who_stops_is_not_waited_for(connection: Connection, alice: Account) -> None:
    """Told so, and nothing is left."""
    connection.send(connection.head("PUT /v1/files?name=a", len(BODY)), BODY[:-1])
    status, error = connection.answer()
    assert (status, error["error"]["reason"]) == (408, "REQUEST_TIMEOUT")  # type: ignore[index]
    assert alice.client.get("/v1/users/me/usage").json()["storage"]["bytes"] == 0


def test_who_leaves_leaves_nothing(server: Server, connection: Connection, alice: Account) -> None:
    """In the middle of a block: the upload ends at once, not when it would be idle."""

    def gone() -> float:
        return server.count("on_api_uploads_total", outcome="CLIENT_GONE")

    before = gone()
    connection.send(connection.head("PUT /v1/files?name=a", len(BODY)), BODY[: MOST_BYTES + 1])
    connection.socket.close()
    until(lambda: gone() > before, "the upload has ended", IDLE_SECONDS - 0.5)
    assert alice.client.get("/v1/files").json()["count"] == 0


def test_the_slow_hold_no_room(server: Server, alice: Account) -> None:
    """More of them than there is room for, each with a body under way of which hardly anything
    comes: who comes after them is not kept waiting by them, and they are served as well."""
    pool, many = server.services.buffer_pool, 2 * TOGETHER_BYTES // MOST_BYTES
    slow = [Connection(server, alice.key) for _ in range(many)]
    try:
        for opened in slow:
            opened.send(opened.head("PUT /v1/files?name=slow", len(BODY)), BODY[:1])
            opened.send(BODY[1 : 2 * LEAST_BYTES])
        until(lambda: pool.streams == many, "all of them stream", IDLE_SECONDS)
        until(lambda: pool.held == 0, "they have lost their blocks", IDLE_SECONDS)
        for opened in slow:
            opened.send(BODY[2 * LEAST_BYTES : -1])
        until(lambda: pool.held == 0, "they have lost them again", IDLE_SECONDS)
        answer = alice.client.put("/v1/files?name=fast", content=BODY)
        assert (answer.status_code, is_body(answer.json())) == (201, True)
        assert pool.streams == many
        for opened in slow:
            opened.send(BODY[-1:])
        assert all(is_body(opened.answer()[1]) for opened in slow)
    finally:
        for opened in slow:
            opened.socket.close()


@pytest.mark.parametrize("way", ["put", "form", "private"])
def test_who_waits_for_more_holds_no_block(
    server: Server, connection: Connection, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block has gone to the node, and the next one doesn't come: it was given back, or many who
    wait so would leave no room for anybody."""
    pool = server.services.buffer_pool
    dealt: list[int] = []

    def ask(most: int, take: Callable[[MemoryBlock], None]) -> BlockRequest:
        dealt.append(most)
        return BufferPool.ask(pool, most, take)

    monkeypatch.setattr(pool, "ask", ask)
    if way == "form":
        body = form((FILE, BODY))
        head = connection.head("POST /v1/files", len(body), FORM)
    else:
        body = BODY
        query = "&visibility=private" if way == "private" else ""
        head = connection.head(f"PUT /v1/files?name=a{query}", len(body), "Expect: 100-continue")
    connection.send(head)
    if way != "form":
        assert connection.until_said(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
    connection.send(body[:MOST_BYTES])
    until(lambda: len(dealt) > 1 and pool.held == 0, "it is with the node", IDLE_SECONDS)
    connection.send(body[MOST_BYTES:])
    status, file = connection.answer()
    assert (status, is_body(file)) == (201, True)


def test_who_waits_for_room_is_not_left_standing(
    server: Server, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While others have all of it: they go on in small steps, for as long as that takes."""
    monkeypatch.setattr(large_bodies, "LONGEST_WAIT_SECONDS", 0.0)
    pool, body = server.services.buffer_pool, BODY[: LARGE_BYTES + 100]
    held: list[MemoryBlock] = []

    async def take_all() -> None:
        for _ in range(TOGETHER_BYTES // MOST_BYTES):
            pool.ask(MOST_BYTES, held.append)

    asyncio.run(take_all())
    connection.send(connection.head("PUT /v1/files?name=a", len(body)), body)
    status, file = connection.answer()
    assert (status, is_body(file, body)) == (201, True)
    assert pool.held == TOGETHER_BYTES

    async def release_all() -> None:
        for block in held:
            block.release()

    asyncio.run(release_all())
    assert pool.held == 0
