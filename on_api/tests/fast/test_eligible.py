"""The one predicate of the fast lanes, held against everything that gives a header a meaning."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import httptools
import pytest
from fastapi import params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from hypothesis import given, settings
from hypothesis import strategies as st

from on_api.core.models.revisions import PROJECT
from on_api.core.settings import Settings
from on_api.fast import eligible
from on_api.fast.eligible import read_eligible
from on_api.main import Application, create_app
from on_api.public.gateway.app import Gateway
from on_api.public.gateway.request import ACCEL
from on_api.server.framing import read_head
from on_api.tests.conftest import DatabaseMaker

GATEWAY = PROJECT / "on_api" / "public" / "gateway"
UNKNOWN = "an addition that fast/eligible.py must know: say there what it means for a fast lane"


@pytest.fixture
def app(sqlite_database: DatabaseMaker, settings_for: Callable[..., Settings]) -> Application:
    """With every middleware that a setting can bring."""
    chosen = settings_for(sqlite_database(), trusted_proxies=["127.0.0.1"])
    cors = chosen.cors.model_copy(update={"origins": ["https://a.example"]})
    limits = chosen.limits.model_copy(update={"requests_per_key": 1})
    return create_app(chosen.model_copy(update={"cors": cors, "limits": limits}))


def test_every_middleware_is_known(app: Application) -> None:
    """What stands before endpoints, and what before the gateway."""
    before_endpoints = {getattr(each.cls, "__name__", "") for each in app.user_middleware}
    assert before_endpoints == eligible.MIDDLEWARE_OF_ENDPOINTS, UNKNOWN
    before_gateway, inner = set(), app.gateway
    while not isinstance(inner, Gateway):
        before_gateway.add(type(inner).__name__)
        inner = inner.app  # type: ignore[attr-defined]
    assert before_gateway == eligible.MIDDLEWARE_AT_THE_GATEWAY, UNKNOWN


def test_every_header_that_an_endpoint_declares_is_known(app: Application) -> None:
    """Of every version."""
    declared = {
        field.alias.lower()
        for route in app.routes
        if isinstance(route, APIRoute)
        for field in get_flat_params(route.dependant)
        if isinstance(field.field_info, params.Header)
    }
    assert declared <= eligible.HEADERS_OF_ENDPOINTS, UNKNOWN


def reads_of_headers() -> Iterator[tuple[Path, int]]:
    """Where the gateway takes headers from a request."""
    for path in sorted(GATEWAY.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.slice, ast.Constant)
                and node.slice.value == "headers"
            ):
                yield path, node.lineno


def test_the_gateway_reads_headers_at_one_place() -> None:
    """There it takes those of `READ` and `ACCEL`, which the predicate has for itself."""
    assert [path.name for path, _ in reads_of_headers()] == ["request.py"]
    assert {b"accept", b"authorization", b"range"} <= eligible.HEADERS_WITH_MEANING


class Parsed:
    """A head as httptools reads it."""

    def __init__(self, head: bytes) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_whole = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(head)

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_message_complete(self) -> None:
        """See httptools."""
        self.is_whole = True


def head_of(target: bytes, *fields: bytes) -> bytes:
    """The head of a GET."""
    return b"\r\n".join([b"GET %s HTTP/1.1" % target, b"Host: x", *fields, b"", b""])


@pytest.mark.parametrize("name", sorted(eligible.HEADERS_WITH_MEANING - {b"accept", ACCEL}))
def test_a_header_with_a_meaning_is_unusual(name: bytes) -> None:
    """Whatever else there is, and however it is written."""
    for field in (b"%s: x" % name, b"%s:x" % name.upper(), b"%s:\t" % name.title()):
        head = head_of(b"/ipfs/x", b"User-Agent: x", field, b"Accept-Encoding: gzip")
        assert read_eligible(head) is None


def test_what_is_usual() -> None:
    """Path, query and one `Accept`; other headers don't matter."""
    fields = [b"ACCEPT: \ta/b ", b"Accept-Encoding: gzip", b"Connection: Keep-Alive"]
    key = (b"/ipfs/x", b"a=b", b"a/b")
    assert read_eligible(head_of(b"/ipfs/x?a=b", *fields)) == (key, False)
    assert read_eligible(head_of(b"/ipfs/x?a=b", *fields, b"X-On-API-Accel: 1")) == (key, True)
    assert read_eligible(head_of(b"/ipfs/x", *fields, b"Accept: c/d")) is None
    for other in (b"/ipns/x", b"/ipfs", b"/v1/files", b"*", b"/ipfs/x#y", b"/ipfs/\xc3\xa4"):
        assert read_eligible(head_of(other)) is None


@pytest.mark.parametrize(
    "head",
    [
        b"GET /ipfs/x HTTP/1.0\r\nHost: x\r\n\r\n",
        b"HEAD /ipfs/x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /ipfs/x HTTP/1.1\r\nUser-Agent: x\r\n\r\n",
        b"GET /ipfs/x HTTP/1.1\r\n\r\n",
        b"GET  /ipfs/x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /ipfs/x HTTP/1.1\nHost: x\r\n\r\n",
        b"GET /ipfs/x HTTP/1.1\r\nHost: x\nContent-Length: 5\r\n\r\n",
        b"GET /ipfs/x HTTP/1.1\r\nHost: x\rContent-Length: 5\r\n\r\n",
        b"GET /ipfs/x HTTP/1.1\r\nHost: x\r\n Content-Length: 5\r\n\r\n",
        b"GET /ipfs/x HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\n",
        b"GET /ipfs/x HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
        b"GET /ipfs/x HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET /ipfs/x HTTP/1.1\r\nHost: x/y\r\n\r\n",
        b"GET /ipfs/x HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
        b"GET /ipfs/x HTTP/1.1\r\nHost: x\r\nnothing\r\n\r\n",
    ],
)
def test_a_head_that_could_be_read_otherwise_is_unusual(head: bytes) -> None:
    """The parser, and what examines heads before it, say what is to be said of it."""
    assert read_eligible(head) is None


_NAMES = sorted({*eligible.HEADERS_WITH_MEANING, b"user-agent", b"x-forwarded-for", b"te"})
_VALUES = [b"", b"x", b"0", b"5", b"close", b"keep-alive", b"chunked", b"a, b", b"*/*"]
_SPOILT = [b" ", b"\t", b"\r", b"\n", b"\r\n", b":", b"\x00", b"\xff", b"#", b"Host: y\r\n", b"0"]


@given(
    target=st.sampled_from([b"/ipfs/x", b"/ipfs/x?a=b", b"/ipfs/%41/b", b"/ipfs/a/../b"]),
    fields=st.lists(
        st.tuples(
            st.sampled_from(_NAMES),
            st.sampled_from([b":", b": ", b":\t", b" :"]),
            st.sampled_from(_VALUES),
        ),
        max_size=4,
    ),
    spoilt=st.sampled_from(_SPOILT),
    place=st.integers(0, 200),
    is_spoilt=st.booleans(),
)
@settings(max_examples=1500, deadline=None)
def test_what_is_usual_is_read_alike_by_everybody(
    target: bytes,
    fields: list[tuple[bytes, bytes, bytes]],
    spoilt: bytes,
    place: int,
    is_spoilt: bool,
) -> None:
    """By the rules of framing it has no body, and the parser finds the same in it."""
    head = head_of(target, *(b"".join(field) for field in fields))
    if is_spoilt:
        at = min(place, len(head) - 4)
        head = head[:at] + spoilt + head[at:]
    request = read_eligible(head)
    if request is None:
        return
    assert read_head(head) == (head, 0)
    parsed = Parsed(head)
    path, query, accept = request.key
    assert parsed.url == (path + b"?" + query if b"?" in parsed.url else path)
    assert parsed.is_whole
    assert parsed.parser.should_keep_alive()
    told = [field for field in parsed.headers if field[0] in eligible.HEADERS_WITH_MEANING]
    told = [field for field in told if field[0] not in {b"host", b"connection", ACCEL}]
    assert told == ([(b"accept", accept)] if b"accept" in dict(parsed.headers) else [])


@pytest.mark.parametrize(
    "name", [b"Cookie", b"On-Api-Passphrase", b"X-Api-Key", b"Proxy-Authorization"]
)
def test_no_secret_is_remembered(name: bytes) -> None:
    """It changes nothing at the gateway, so the request is eligible; other headers are kept."""
    for _ in range(2):
        assert read_eligible(head_of(b"/ipfs/x", b"User-Agent: a tin can", name + b": hunter2"))
        assert read_eligible(head_of(b"/ipfs/x", b"User-Agent: a tin can"))
    assert any(b"a tin can" in each for each in eligible.remembered)
    for memory in (eligible.remembered, eligible.remembered_heads):
        assert not any(b"hunter2" in each for each in memory)


def test_a_head_of_blanks_is_read_in_one_way() -> None:
    """It takes no longer than another one: a pattern with several ways would take days."""
    head = head_of(b"/ipfs/x", b"A:" + b" " * 60_000 + b"\x00")
    assert read_eligible(head) is None
    head = head_of(b"/ipfs/x", *[b"A: b"] * 10_000, b"A : b")
    assert read_eligible(head) is None
