"""Heads of requests that never end, or are too large: refused before they fill the memory."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from on_api.cli.http_protocol import MAX_HEAD_BYTES
from on_api.tests.conftest import Server

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
