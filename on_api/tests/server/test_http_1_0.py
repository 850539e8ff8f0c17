"""What clients of HTTP/1.0 are answered: the bytes alone, ended by the connection's end."""

from __future__ import annotations

import re
import socket

import pytest

from on_api.tests.conftest import Account, Server

_MOMENT = re.compile(rb"20\d\d-[^\"]*")
"""When an export was made."""


def asked_by_1_0(server: Server, path: str, key: str) -> tuple[bytes, bytes]:
    """The head and the body of an answer."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"GET {path} HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
        connection.sendall(head.encode())
        said = b""
        while data := connection.recv(65536):
            said += data
    told, _, body = said.partition(b"\r\n\r\n")
    return told.lower(), body


@pytest.mark.parametrize("kind", ["json", "pins"])
def test_an_answer_without_a_length(server: Server, alice: Account, kind: str) -> None:
    """It has no chunks in it."""
    alice.upload(b"hello", name="é")
    path = f"/v1/users/me/export?format={kind}"
    told, body = asked_by_1_0(server, path, alice.key)
    answer = alice.client.get(path)
    assert answer.headers.get("transfer-encoding") == "chunked"
    assert _MOMENT.sub(b"", body) == _MOMENT.sub(b"", answer.content)
    assert b"transfer-encoding" not in told
    assert b"connection: close" in told


def test_an_answer_with_a_length(server: Server, alice: Account) -> None:
    """As ever."""
    file = alice.upload(b"hello")
    told, body = asked_by_1_0(server, f"/v1/files/{file['id']}/content", alice.key)
    assert body == b"hello"
    assert b"content-length: 5" in told
