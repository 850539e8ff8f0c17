"""Answers that the server gives at once, beside everything that is asked the usual way."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from on_api.tests.conftest import Account, Server
from on_api.tests.testing.deadline import until

LARGE = 300_000


@pytest.fixture
def connection(server: Server) -> Iterator[socket.socket]:
    """A bare connection, that takes in little by itself."""
    place = httpx.URL(server.url)
    with closing(socket.socket()) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        opened.settimeout(60)
        opened.connect((place.host, place.port or 0))
        yield opened


def given(server: Server) -> int:
    """Bytes given at once so far."""
    text = server.services.metrics.exposition().decode()
    [line] = [one for one in text.splitlines() if one.startswith("on_api_gateway_hot_sent_bytes ")]
    return int(float(line.split(" ")[1]))


def make_hot(server: Server, account: Account, data: bytes) -> str:
    """A path whose answer is given from memory from now on."""
    path = f"/ipfs/{account.upload(data)['cid']}"

    def is_hot() -> bool:
        before = given(server)
        with server.client() as client:
            assert client.get(path).content == data
        return given(server) == before + len(data)

    until(is_hot, "it comes from memory")
    return path


def test_unusual_requests_among_usual_ones(
    server: Server, alice: Account, connection: socket.socket
) -> None:
    """On one connection, one after the other: bodies are no requests, HEAD has none, conditions
    are kept, and who wants to end it ends it."""
    data = os.urandom(5000)
    path = make_hot(server, alice, data)
    line = f"{path} HTTP/1.1\r\nHost: x\r\n"
    hidden = f"GET {path} HTTP/1.1\r\nHost: y\r\n\r\n"
    usual = (f"GET {line}\r\n", 200, data)
    reader = connection.makefile("rb")
    for words, status, body in (
        usual,
        (f"HEAD {line}\r\n", 200, b""),
        (f"GET {line}Range: bytes=1-3\r\n\r\n", 206, data[1:4]),
        usual,
        (f"GET {line}If-None-Match: *\r\n\r\n", 304, b""),
        (f"GET {line}Content-Length: {len(hidden)}\r\n\r\n{hidden}", 200, data),
        (
            f"GET {line}Transfer-Encoding: chunked\r\n\r\n{len(hidden):x}\r\n{hidden}\r\n0\r\n\r\n",
            200,
            data,
        ),
        (f"GET {line}Accept: */*\r\nAccept: text/html\r\n\r\n", 200, data),
        (f"GET http://z{line}\r\n", 200, data),
        (f"GET {path}?download=true HTTP/1.1\r\nHost: x\r\n\r\n", 200, data),
        (f"POST {line}Content-Length: 0\r\n\r\n", 405, None),
        (f"GET {line}Connection: keep-alive\r\n\r\n", 200, data),
        (f"GET {line}Connection: close\r\n\r\n", 200, data),
    ):
        connection.sendall(words.encode())
        assert reader.readline().split(b" ")[1] == b"%d" % status, words
        headers = http.client.parse_headers(reader)
        has_body = status != 304 and not words.startswith("HEAD")
        came = reader.read(int(headers["content-length"])) if has_body else b""
        assert body is None or came == body, words
        assert len(headers["x-request-id"]) == 16
        assert headers["date"]
    assert reader.read() == b""


def test_who_asks_and_does_not_read(
    server: Server, alice: Account, connection: socket.socket
) -> None:
    """Gets what the connection takes in, and not memory filled with the rest; all of it in the
    end."""
    data = os.urandom(LARGE)
    path = make_hot(server, alice, data)
    before, count = given(server), 200
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    connection.sendall(request * count)  # at once
    with server.client() as other:
        for _ in range(20):
            assert other.get("/healthz").status_code == 200
    assert given(server) - before < count * LARGE / 4
    last = request.replace(b"Host: x", b"Host: x\r\nConnection: close")
    connection.sendall(last)
    came = bytearray()
    while piece := connection.recv(1024 * 1024):
        came += piece
    assert came.count(b"HTTP/1.1 200 OK") == count + 1
    assert came.count(data) == count + 1
