"""Handwritten HTTP/1.1: a connection's answers, one by one."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit


class RawAnswer(NamedTuple):
    """One answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """A connection that sends any bytes."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._said = b""

    def send(self, *pieces: bytes) -> None:
        """Send each piece by itself."""
        for piece in pieces:
            self.socket.sendall(piece)

    def send_no_more(self) -> None:
        """Close the sending side."""
        self.socket.shutdown(socket.SHUT_WR)

    def answer(self, method: str = "GET") -> RawAnswer:
        """Return the next final answer, to a request of this method; interim ones are skipped."""
        while True:
            head = self._until(b"\r\n\r\n").decode("latin-1")
            line, *lines = head.split("\r\n")
            status = int(re.fullmatch(r"HTTP/1\.[01] ([1-5]\d\d) .*", line)[1])  # type: ignore[index]
            if status >= 200:
                break
        headers = {}
        for each in lines:
            name, _, value = each.partition(":")
            headers[name.lower()] = value.strip()
        return RawAnswer(status, headers, self._body(status, headers, method))

    def rest(self) -> bytes:
        """Return all bytes until the other side closes. Raises `ConnectionResetError`."""
        while data := self.socket.recv(65536):
            self._said += data
        said, self._said = self._said, b""
        return said

    def _body(self, status: int, headers: dict[str, str], method: str) -> bytes:
        if method == "HEAD" or status in (204, 304):
            return b""
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._until(b"\r\n"), 16):
                body += self._take(size)
                assert self._take(2) == b"\r\n"
            assert self._take(2) == b"\r\n"
            return body
        return self._take(int(headers["content-length"]))

    def _until(self, end: bytes) -> bytes:
        while end not in self._said:
            self._hear()
        found, _, self._said = self._said.partition(end)
        return found

    def _take(self, size: int) -> bytes:
        while len(self._said) < size:
            self._hear()
        taken, self._said = self._said[:size], self._said[size:]
        return taken

    def _hear(self) -> None:
        data = self.socket.recv(65536)
        assert data, f"the connection has ended after {self._said!r}"
        self._said += data


@contextmanager
def wire_to(url: str, tls: ssl.SSLContext | None = None) -> Iterator[Wire]:
    """Open a connection to an origin, and close it when the block ends."""
    place = urlsplit(url)
    opened = socket.create_connection((str(place.hostname), int(place.port or 0)), timeout=60)
    if tls is not None:
        opened = tls.wrap_socket(opened, server_hostname=place.hostname)
    with closing(opened):
        yield Wire(opened)
