"""Where requests begin and end, for every way that their bytes may come in: the protocol without a
socket, in front of an application that tells what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
import uvicorn
from starlette.responses import Response
from uvicorn.server import ServerState

from on_api.core.errors import OnApiError
from on_api.core.server_settings import ConnectionSettings
from on_api.core.web.error_handlers import render_failure
from on_api.server.framing import MAX_HEAD_BYTES
from on_api.server.protocol import FramedHttp

HOST = b"Host: a\r\n"
INNER = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
"""In bodies, and behind what is refused: nobody may ever be asked for it."""
NEXT = b"GET /next HTTP/1.1\r\nHost: b\r\n\r\n"


END_OF_STREAM = b"(the client has closed its side)"


class Asked:
    """What the application was asked, in order."""

    connection_limits = ConnectionSettings()

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes]] = []
        self.headers: list[dict[bytes, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Read the request, tell of it."""
        body, has_more = b"", True
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.requests.append(("GONE", scope["path"], body))
                return
            body += message.get("body", b"")
            has_more = message.get("more_body", False)
        self.requests.append((scope["method"], scope["path"], body))
        self.headers.append(dict(scope["headers"]))
        await Response(b"ok")(scope, receive, send)

    def render_error(self, path: str, error: OnApiError) -> Response:
        """As an `Application` does."""
        return render_failure(error)


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False
        self.protocol: Any = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.written += b"<END>"

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


Heard = tuple[Asked, list[int], bytes]
"""What was asked, the answers' statuses, and all that was said."""


async def _heard(
    config: uvicorn.Config, pieces: Iterable[bytes], asked: Asked, protocol: type[FramedHttp]
) -> Heard:
    transport = Transport()
    http = protocol(config, ServerState(), {})
    http.app = asked
    http.connection_made(transport)
    for piece in pieces:
        receiver = transport.protocol
        if piece is END_OF_STREAM:
            receiver.eof_received()
        else:
            receiver.get_buffer(len(piece))[: len(piece)] = piece
            receiver.buffer_updated(len(piece))
        for _ in range(20):  # nobody waits for anything but each other
            await asyncio.sleep(0)
    http.connection_lost(None)
    await asyncio.sleep(0)
    said = transport.written
    return asked, [int(part[:3]) for part in said.split(b"HTTP/1.1 ")[1:]], said


async def _heard_each(
    streams: Iterable[Iterable[bytes]], kind: type[Asked], protocol: type[FramedHttp]
) -> list[Heard]:
    config = uvicorn.Config(Asked(), log_config=None, proxy_headers=False)
    return [await _heard(config, filter(None, each), kind(), protocol) for each in streams]


def hear_each(
    streams: Iterable[Iterable[bytes]],
    kind: type[Asked] = Asked,
    protocol: type[FramedHttp] = FramedHttp,
) -> list[Heard]:
    """Streams of pieces, each over a connection of its own to an application of this kind."""
    return asyncio.run(_heard_each(streams, kind, protocol))


def hear(*pieces: bytes) -> Heard:
    """One stream."""
    [heard] = hear_each([pieces])
    return heard


def chunked(*pieces: bytes, trailers: bytes = b"") -> bytes:
    """A body in chunks."""
    each = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return each + b"0\r\n" + trailers + b"\r\n"


def with_length(body: bytes) -> bytes:
    """A body with its header."""
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def in_chunks(body: bytes, trailers: bytes = b"") -> bytes:
    """The same in chunks."""
    return b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body, trailers=trailers)


def test_blanks_around_a_value_are_no_part_of_it() -> None:
    """RFC 9110, 5.5: the parser leaves those behind it."""
    asked, statuses, _ = hear(b"GET / HTTP/1.1\r\nHost:\t b \t\r\nA:  b c \t \r\nD: \t\r\n\r\n")
    assert (asked.headers, statuses) == ([{b"host": b"b", b"a": b"b c", b"d": b""}], [200])


OFFERS = {
    "h2c": b"Upgrade: h2c\r\nHTTP2-Settings: AAE\r\nConnection: Upgrade, HTTP2-Settings\r\n",
    "websocket": b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n",
    "anything": b"connection: UPGRADE\r\nUPGRADE:foo/1\r\nupgrade: bar, baz\r\n",
    "TLS": b"Upgrade: TLS/1.2\r\nConnection: Upgrade\r\n",
}


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("body", [with_length(INNER), in_chunks(INNER)], ids=["length", "chunks"])
@pytest.mark.parametrize("offer", list(OFFERS.values()), ids=list(OFFERS))
def test_an_upgrade_that_is_offered_changes_nothing(method: str, body: bytes, offer: bytes) -> None:
    """The body is the request's, as ever; so for the second one behind it."""
    request = method.encode() + b" /one HTTP/1.1\r\n" + HOST + offer + body
    for pieces in ([request, request + NEXT], [request + request + NEXT]):
        asked, statuses, _ = hear(*pieces)
        assert asked.requests == [(method, "/one", INNER)] * 2 + [("GET", "/next", b"")]
        assert statuses == [200] * 3


EMPTY_LINES = b"\r\n\r\n0\r\n\r\n" + INNER
STREAM = (
    b"PUT /a HTTP/1.1\r\n" + HOST + OFFERS["h2c"] + with_length(INNER)
    + b"\r\nPOST /b HTTP/1.1\r\n" + HOST + in_chunks(EMPTY_LINES, b"A: b\r\nHost: c\r\n")
    + b"GET /\xc3\xa9?\xff HTTP/1.1\r\n" + HOST + b"\r\n"
    + b"POST /c HTTP/1.1\r\n" + HOST + with_length(b"")
    + b"POST /d HTTP/1.1\r\n" + HOST + in_chunks(b"x", b"Connection: close\r\nUpgrade: x\r\n")
    + NEXT
)  # fmt: skip
"""Many on one connection."""
IN_IT = [
    ("PUT", "/a", INNER),
    ("POST", "/b", EMPTY_LINES),
    ("GET", "/é", b""),
    ("POST", "/c", b""),
    ("POST", "/d", b"x"),
    ("GET", "/next", b""),
]


@pytest.mark.parametrize("first", [STREAM.index(NEXT), 1])
def test_a_stream_of_requests_cut_anywhere(first: int) -> None:
    """In two, and in three."""
    cuts = [sorted({0, first, cut, len(STREAM)}) for cut in range(len(STREAM))]
    streams = [[STREAM[a:b] for a, b in pairwise(cut)] for cut in cuts]
    for cut, (asked, statuses, _) in zip(cuts, hear_each(streams), strict=True):
        assert (asked.requests, statuses) == (IN_IT, [200] * len(IN_IT)), cut


def test_a_stream_of_requests_byte_by_byte() -> None:
    """As few at once as there may be."""
    asked, statuses, _ = hear(*(bytes([each]) for each in STREAM))
    assert (asked.requests, statuses) == (IN_IT, [200] * len(IN_IT))


def test_trailers_are_no_headers() -> None:
    """They come when it was decided who asks, and from whom a proxy took the headers away."""
    trailers = b"Authorization: Bearer x\r\nX-Forwarded-For: 1.2.3.4\r\nHost: c\r\n"
    asked, statuses, _ = hear(b"POST / HTTP/1.1\r\n" + HOST + in_chunks(b"x", trailers))
    assert statuses == [200]
    assert asked.headers == [{b"host": b"a", b"transfer-encoding": b"chunked"}]


def head(*lines: bytes, first: bytes = b"POST / HTTP/1.1") -> bytes:
    """A request line, a Host, and more headers."""
    return b"\r\n".join([first, b"Host: a", *lines]) + b"\r\n\r\n"


CHUNKS = head(b"Transfer-Encoding: chunked")
REFUSED = {
    "a length and chunks": head(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "chunks and a length": head(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "chunks twice": head(b"Transfer-Encoding: chunked, chunked"),
    "chunks two times": head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "chunks inside": head(b"Transfer-Encoding: chunked, gzip"),
    "another coding": head(b"Transfer-Encoding: identity"),
    "nearly chunks": head(b"Transfer-Encoding: xchunked"),
    "a tab in chunks": head(b"Transfer-Encoding: \x0bchunked"),
    "quoted chunks": head(b'Transfer-Encoding: "chunked"'),
    "no coding": head(b"Transfer-Encoding:"),
    "chunks in 1.0": head(b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0"),
    "a signed length": head(b"Content-Length: +5"),
    "two equal lengths": head(b"Content-Length: 5", b"Content-Length: 5"),
    "a list of lengths": head(b"Content-Length: 5, 5"),
    "an empty length": head(b"Content-Length:"),
    "a hex length": head(b"Content-Length: 0x5"),
    "two numbers": head(b"Content-Length: 5 5"),
    "an endless length": head(b"Content-Length: 99999999999999999999"),
    "a negative length": head(b"Content-Length: -1"),
    "a space before a colon": head(b"Content-Length : 5"),
    "a space before another": head(b"Upgrade : h2c"),
    "a space before a name": head(b" Content-Length: 5"),
    "a folded line": head(b"A: b", b" c"),
    "a folded upgrade": head(b"Upgrade: h2c", b" c", b"Connection: upgrade"),
    "a bare line feed": head(b"A: b\nContent-Length: 5"),
    "a bare carriage return": head(b"A: b\rContent-Length: 5"),
    "line feeds only": b"GET / HTTP/1.1\nHost: a\n\n\r\n\r\n",
    "a zero byte": head(b"A: b\0"),
    "no name": head(b": b"),
    "no colon": head(b"Abc"),
    "two hosts": head(b"Host: a"),
    "two hosts in 1.0": head(b"Host: a", first=b"GET / HTTP/1.0"),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "no host, but nearly": b"GET / HTTP/1.1\r\nX-Host: a\r\n\r\n",
    "a host and a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a host and a user": b"GET / HTTP/1.1\r\nHost: b@a\r\n\r\n",
    "two hosts in one": b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2": head(first=b"GET / HTTP/2.0"),
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": head(first=b"GET / HTTP/1.2"),
    "small letters": head(first=b"GET / http/1.1"),
    "two spaces": head(first=b"GET  / HTTP/1.1"),
    "a space behind": head(first=b"GET / HTTP/1.1 "),
    "a space in the target": head(first=b"GET /a b HTTP/1.1"),
    "a tab in the target": head(first=b"GET /a\tb HTTP/1.1"),
    "no method": head(first=b"G\xc3T / HTTP/1.1"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a signed chunk": CHUNKS + b"+1\r\nx\r\n0\r\n\r\n",
    "a hex chunk": CHUNKS + b"0x1\r\nx\r\n0\r\n\r\n",
    "a space before a chunk's size": CHUNKS + b" 1\r\nx\r\n0\r\n\r\n",
    "a space behind it": CHUNKS + b"1 \r\nx\r\n0\r\n\r\n",
    "a negative chunk": CHUNKS + b"-1\r\nx\r\n0\r\n\r\n",
    "an endless chunk": CHUNKS + b"fffffffffffffffff\r\nx",
    "a chunk without a size": CHUNKS + b"\r\nx\r\n0\r\n\r\n",
    "a chunk with a line feed": CHUNKS + b"1\nx\r\n0\r\n\r\n",
    "a line feed behind a chunk": CHUNKS + b"1\r\nx\n0\r\n\r\n",
    "a chunk that is longer": CHUNKS + b"1\r\nxyz\r\n0\r\n\r\n",
    "line feeds at the end": CHUNKS + b"1\r\nx\r\n0\r\n\n",
    "a line feed in an extension": CHUNKS + b"1;a=\n2\r\nx\r\n0\r\n\r\n",
    "a quoted line in an extension": CHUNKS + b'1;a="\r\n\r\n"\r\nx\r\n0\r\n\r\n',
    "a length in trailers": CHUNKS + chunked(b"x", trailers=b"Content-Length: 5\r\n"),
    "chunks in trailers": CHUNKS + chunked(b"x", trailers=b"Transfer-Encoding: chunked\r\n"),
    "a folded trailer": CHUNKS + chunked(b"x", trailers=b"A: b\r\n c\r\n"),
}


@pytest.mark.parametrize("request_", list(REFUSED.values()), ids=list(REFUSED))
def test_what_two_could_read_differently_is_refused(request_: bytes) -> None:
    """Once, with the connection's end, and with nothing behind it looked at; in one piece, and byte
    by byte."""
    for pieces in ([request_ + INNER], [bytes([each]) for each in request_ + INNER]):
        asked, statuses, said = hear(NEXT, *pieces)
        assert statuses == [200, 400]
        assert b"connection: close\r\n" in said
        assert said.endswith(b'"}}<END>')
        assert {(method, path) for method, path, _ in asked.requests} <= {
            ("GET", "/next"),
            ("GONE", "/"),
        }


def test_other_refusals() -> None:
    """What has a status of its own."""
    for request, status in (
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405),
        (head(b"Transfer-Encoding: gzip, chunked"), 501),
        (head(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"), 501),
        (head(b"A: " + b"x" * MAX_HEAD_BYTES), 431),
        (b"GET /" + b"x" * MAX_HEAD_BYTES, 431),
        (CHUNKS + b"1;a=" + b"x" * MAX_HEAD_BYTES, 431),
        (CHUNKS + b"0\r\nA: " + b"x" * MAX_HEAD_BYTES, 431),
    ):
        pieces = [request[at : at + 16_000] for at in range(0, len(request), 16_000)]
        _, statuses, said = hear(*pieces, INNER)
        assert statuses == [status]
        assert b"connection: close\r\n" in said


BLANKS = b" \t" * 30_000


@pytest.mark.parametrize("name", [b"Host", b"Content-Length", b"Transfer-Encoding", b"Upgrade"])
@pytest.mark.parametrize("value", [BLANKS + b"x\n", b"x" + BLANKS + b"y", BLANKS + b'"', BLANKS])
def test_blanks_are_looked_at_once(name: bytes, value: bytes) -> None:
    """A head of them is answered, and not thought about for days."""
    request = b"GET / HTTP/1.1\r\n" + (b"" if name == b"Host" else HOST) + name + b":" + value
    pieces = [request[at : at + 16_000] for at in range(0, len(request), 16_000)]
    _, statuses, _ = hear(*pieces, b"\r\n\r\n")
    assert len(statuses) == 1


def test_a_target_that_grows_is_bounded() -> None:
    """Bytes that aren't ASCII are three when they are encoded."""
    request = b"GET /" + b"\xff" * 22_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"
    pieces = [request[at : at + 16_000] for at in range(0, len(request), 16_000)]
    _, statuses, _ = hear(*pieces)
    assert statuses == [431]


def test_http_1_0_is_told_to_go_on_by_nothing() -> None:
    """It knows no interim answers."""
    for version, told in ((b"1.0", 0), (b"1.1", 1)):
        start = b"POST / HTTP/" + version + b"\r\nHost: a\r\nExpect: 100-continue\r\n"
        _, _, said = hear(start + b"Content-Length: 5\r\n\r\n", b"hello")
        assert said.count(b"HTTP/1.1 100") == told


def test_what_is_unusual_and_allowed() -> None:
    """Each has one meaning only."""
    for request in (
        head(b"Content-Length: \t5 ") + b"hello",
        head(b"Content-Length: 0005") + b"hello",
        head(b"TRANSFER-encoding:\tChunked ") + chunked(b"hello"),
        CHUNKS + b"00005;a=b;c\r\nhello\r\n000\r\n\r\n",
        b"\r\n\r\n" + head(b"Content-Length: 5") + b"hello",
        b"POST / HTTP/1.1\r\nhost:A.example_x:80\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost:\r\nContent-Length: 5\r\n\r\nhello",
        b"POST http://b/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        head(b"Content-Length: 5", b"A: " + b"x" * (MAX_HEAD_BYTES - 100)) + b"hello",
    ):
        pieces = [request[at : at + 16_000] for at in range(0, len(request), 16_000)]
        asked, statuses, _ = hear(*pieces, NEXT)
        assert asked.requests == [("POST", "/", b"hello"), ("GET", "/next", b"")], request[:80]
        assert statuses == [200, 200]


@pytest.mark.parametrize("first", [b"GET /last HTTP/1.0", b"GET /last HTTP/1.1"])
def test_nothing_is_read_behind_the_last_request(first: bytes) -> None:
    """Its client has said that it is the last one."""
    last = first + b"\r\nHost: a\r\nConnection: close\r\n\r\n"
    for pieces in ([last + INNER], [last, INNER]):
        asked, statuses, said = hear(*pieces)
        assert asked.requests == [("GET", "/last", b"")]
        assert statuses == [200]
        assert b"connection: close\r\n" in said


class Endless(Asked):
    """Answers nobody."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Wait until the client has gone, and tell."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.requests.append(("GONE", scope["path"], b""))


@pytest.mark.parametrize("behind", [0, 1, 400])
def test_who_goes_away_is_missed_by_the_request_under_way(behind: int) -> None:
    """However many come behind it: none of them is begun."""
    [(asked, statuses, said)] = hear_each([[NEXT + INNER * behind]], Endless)
    assert (asked.requests, statuses, said) == ([("GONE", "/next", b"")], [], b"")
