"""What on-api says to what is no request, and how it ends connections: nobody is cut off from an
answer, and nothing fills the memory."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from fastapi import Request
from fastapi.routing import APIRoute

from on_api.server import lingering
from on_api.server import protocol as framed_http
from on_api.server.framing import MAX_HEAD_BYTES
from on_api.tests.conftest import Account, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.raw_http import wire_to

PIECE = b"x" * 16_384
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"POST /v1/auth/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def connection(server: Server) -> Iterator[socket.socket]:
    """A bare connection to the server."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with closing(socket.create_connection((host, int(port)), timeout=10)) as opened:
        yield opened


def answer(connection: socket.socket) -> bytes:
    """All that is said until the connection ends."""
    said = b""
    try:
        while data := connection.recv(65536):
            said += data
    except ConnectionResetError:
        pass
    return said


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET /",
        GET + b"X-Endless: ",
        GET + b"X-Endless",
        CHUNKED + b"1\r\nx\r\n0\r\nX-Trailer: ",
        CHUNKED + b"1;extension=",
    ],
    ids=["path", "value", "name", "trailer", "chunk extension"],
)
def test_what_never_ends_is_cut(connection: socket.socket, beginning: bytes) -> None:
    """Long before what no socket's buffers could hold."""
    connection.sendall(beginning)
    sent = 0
    try:
        while sent < 1024 * MAX_HEAD_BYTES:
            connection.sendall(PIECE)
            sent += len(PIECE)
    except OSError:
        pass
    assert sent < 1024 * MAX_HEAD_BYTES, "all of it was taken"


def test_many_small_headers(connection: socket.socket) -> None:
    """It is their sum that counts."""
    headers = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 100) for n in range(1000))
    connection.sendall(GET + headers + b"\r\n")
    assert answer(connection).startswith(b"HTTP/1.1 431 ")


def test_what_is_allowed(connection: socket.socket) -> None:
    """A large head, and one after the other on the same connection."""
    large = GET + b"X-Large: " + b"y" * (MAX_HEAD_BYTES - 200) + b"\r\n"
    for _ in range(3):
        connection.sendall(large + b"\r\n")
        said = b""
        while not said.endswith(b"}"):  # head and body may come apart
            said += connection.recv(65536)
        assert said.startswith(b"HTTP/1.1 200 ")
    connection.sendall(large + b"Connection: close\r\n\r\n")
    assert answer(connection).startswith(b"HTTP/1.1 200 ")


def put(target: str, key: str, length: int, *lines: str) -> bytes:
    """The head of an upload."""
    more = "".join(f"{line}\r\n" for line in lines)
    return (
        f"PUT {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Length: {length}\r\n{more}\r\n"
    ).encode()


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (b"GET %s HTTP/1.1\r\n\r\n", 400, "BAD_REQUEST"),
        (b"HEAD %s HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "BAD_REQUEST"),
        (b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", 400, "BAD_REQUEST"),
        (b"POST %s HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n", 400, "BAD_REQUEST"),
        (b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x, chunked\r\n\r\n", 501,
         "NOT_IMPLEMENTED"),
        (b"GET %s HTTP/1.1\r\nHost: a\r\nA: " + b"x" * MAX_HEAD_BYTES, 431, "HEADERS_TOO_LARGE"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_answered_in_its_version_s_words(
    server: Server, request_: bytes, status: int, reason: str
) -> None:
    """As far as it says to which it goes."""
    for path in (b"/v1/files", b"/v2/files?name=a%20b", b"http://h/v2/files", b"/%C3%A9"):
        with wire_to(server.url) as wire:
            wire.send(request_ % path)
            is_head = request_.startswith(b"HEAD")
            answer = wire.answer("HEAD" if is_head else "GET")
            assert answer.status == status
            assert answer.headers["connection"] == "close"
            assert len(answer.headers["x-request-id"]) == 16
            is_second = b"/v2/" in path
            media_type = "application/problem+json" if is_second else "application/json"
            assert answer.headers["content-type"] == media_type
            if not is_head:
                body = json.loads(answer.body)
                assert (body["code"] if is_second else body["error"]["reason"]) == reason
            assert wire.rest() == b""


def test_an_upload_that_is_malformed_in_its_middle(server: Server, alice: Account) -> None:
    """It is answered once, in the version's words, and leaves nothing."""
    with wire_to(server.url) as wire:
        head = put("/v2/files?name=x", alice.key, 0).replace(
            b"Content-Length: 0", b"Transfer-Encoding: chunked"
        )
        wire.send(head, b"5\r\nhello\r\n", b"x\r\n" + GET + b"\r\n")
        answer = wire.answer()
        assert (answer.status, json.loads(answer.body)["code"]) == (400, "BAD_REQUEST")
        assert wire.rest() == b""
    assert alice.client.get("/v1/files").json()["count"] == 0


def test_names_as_they_are_typed(server: Server, alice: Account) -> None:
    """A URL with bytes that should have been encoded."""
    target = "/v1/files?name=été.txt"
    with wire_to(server.url) as wire:
        wire.send(put(target, alice.key, 5), b"hello")
        assert json.loads(wire.answer().body)["name"] == "été.txt"
        wire.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n".encode())
        wire.send(f"Authorization: Bearer {alice.key}\r\n\r\n".encode())
        assert json.loads(wire.answer().body)["count"] == 1
        wire.send("GET /ipfs/été HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        raw = wire.answer()
        wire.send(b"GET /ipfs/%C3%A9t%C3%A9 HTTP/1.1\r\nHost: x\r\n\r\n")
        encoded = wire.answer()
        assert (raw.status, raw.body) == (encoded.status, encoded.body)


LARGE = 20 * 1024 * 1024


@pytest.mark.parametrize("body", [100_000, LARGE], ids=["100 kB", "20 MiB"])
@pytest.mark.parametrize(
    "said",
    ["Connection: close", "Expect: 100-continue", "X: y", "HTTP/1.0"],
)
def test_a_refusal_is_heard_by_who_sends_everything_first(
    server: Server, body: int, said: str
) -> None:
    """Also when the connection ends with it."""
    head = put("/v1/files?name=x", "nobody", body, *([said] if ":" in said else []))
    if said == "HTTP/1.0":
        head = head.replace(b"HTTP/1.1", b"HTTP/1.0")
    for _ in range(4):
        with wire_to(server.url) as wire:
            wire.send(head, bytes(body))
            assert wire.answer().status == 401
            if said in ("Connection: close", "HTTP/1.0") or body == LARGE:
                assert wire.rest() == b""
            elif said == "X: y":
                wire.send(GET + b"\r\n")
                assert wire.answer().status == 200


def test_a_form_that_is_refused_in_its_middle_and_ends_the_connection(
    server: Server, alice: Account
) -> None:
    """The server receives past the parser then."""
    part = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
    form = part % b"unknown" + b"x\r\n" + part % b'file"; filename="f' + bytes(LARGE) + b"\r\n--x--"
    head = put(
        "/v1/files",
        alice.key,
        len(form),
        "Content-Type: multipart/form-data; boundary=x",
        "Connection: close",
    ).replace(b"PUT", b"POST")
    with wire_to(server.url) as wire:
        wire.send(head, form)
        assert wire.answer().status == 400
        assert wire.rest() == b""


def test_who_sends_no_more_is_answered(server: Server, alice: Account) -> None:
    """Small and large, up and down, several at once."""
    data = bytes(LARGE)
    with wire_to(server.url) as wire:
        wire.send(put("/v1/files?name=x", alice.key, LARGE), data)
        wire.send_no_more()
        file = json.loads(wire.answer().body)
        assert wire.rest() == b""
    get = f"GET /v1/files/{file['id']}/content HTTP/1.1\r\nHost: x\r\n"
    request = f"{get}Authorization: Bearer {alice.key}\r\n\r\n".encode()
    with wire_to(server.url) as wire:
        wire.send(GET + b"\r\n" + request + put("/v1/files?name=y", alice.key, 5) + b"hello")
        wire.send(GET + b"\r\n")
        wire.send_no_more()
        answers = [wire.answer() for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 201, 200]
        assert answers[1].body == data
        assert wire.rest() == b""
    with wire_to(server.url) as wire:
        wire.send(GET)
        wire.send_no_more()
        assert wire.answer().status == 400


def test_who_sends_no_more_and_is_gone_is_not_waited_with(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that hangs, of a client that has left without a word, doesn't stay for ever."""
    monkeypatch.setattr(framed_http, "HALF_CLOSED_SECONDS", 0.1)
    asked = threading.Event()

    async def hang(request: Request) -> None:
        asked.set()
        while not await request.is_disconnected():
            await asyncio.sleep(0.05)

    route = APIRoute("/hang", hang)
    server.app.router.routes.insert(0, route)
    try:
        with wire_to(server.url) as wire:
            wire.send(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
            assert asked.wait(20)
            wire.send_no_more()
            assert wire.rest() == b""
    finally:
        server.app.router.routes.remove(route)


def test_those_that_linger_are_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in bytes; however many there are, others are answered."""
    monkeypatch.setattr(lingering, "MOST_LINGERING_CONNECTIONS", 3)
    refused = put("/v1/files?name=x", "nobody", LARGE, "Connection: close")
    with ExitStack() as stack:
        wires = [stack.enter_context(wire_to(server.url)) for _ in range(5)]
        for wire in wires:
            wire.send(refused)
            assert wire.answer().status == 401
        until(lambda: server.connections <= 3, "the first two were let go")
        with pytest.raises(OSError, match=r"reset|pipe"):
            wires[0].send(*[bytes(LARGE // 100)] * 100)
        wires[-1].send(bytes(LARGE))
        assert wires[-1].rest() == b""


def test_a_head_that_comes_in_pieces_behind_a_request(connection: socket.socket) -> None:
    """Reading goes on when what was held is no whole head."""
    long = GET + b"X-Long: " + b"x" * 60_000 + b"\r\n\r\n"
    for _ in range(20):
        connection.sendall(GET + b"\r\n" + long)
    connection.shutdown(socket.SHUT_WR)
    assert answer(connection).count(b"HTTP/1.1 200") == 40
