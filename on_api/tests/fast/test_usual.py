"""The one predicate of the fast lanes, held against everything that gives a header a meaning."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute

from on_api.core.models.revisions import PROJECT
from on_api.core.settings import Settings
from on_api.fast import usual
from on_api.fast.usual import read_usual
from on_api.main import Application, create_app
from on_api.public.gateway.app import Gateway
from on_api.tests.conftest import DatabaseMaker

GATEWAY = PROJECT / "on_api" / "public" / "gateway"
UNKNOWN = "an addition that fast/usual.py must know: say there what it means for a fast lane"


@pytest.fixture
def app(sqlite_database: DatabaseMaker, settings_for: Callable[..., Settings]) -> Application:
    """With every middleware that a setting can bring."""
    settings = settings_for(sqlite_database(), trusted_proxies=["127.0.0.1"])
    cors = settings.cors.model_copy(update={"origins": ["https://a.example"]})
    return create_app(settings.model_copy(update={"cors": cors}))


def test_every_middleware_is_known(app: Application) -> None:
    """What stands before endpoints, and what before the gateway."""
    before_endpoints = {getattr(each.cls, "__name__", "") for each in app.user_middleware}
    assert before_endpoints == usual.MIDDLEWARE_OF_ENDPOINTS, UNKNOWN
    before_gateway, inner = set(), app.gateway
    while not isinstance(inner, Gateway):
        before_gateway.add(type(inner).__name__)
        inner = inner.app  # type: ignore[attr-defined]
    assert before_gateway == usual.MIDDLEWARE_AT_THE_GATEWAY, UNKNOWN


def test_every_header_that_an_endpoint_declares_is_known(app: Application) -> None:
    """Of every version."""
    declared = {
        field.alias.lower()
        for route in app.routes
        if isinstance(route, APIRoute)
        for field in get_flat_params(route.dependant)
        if isinstance(field.field_info, params.Header)
    }
    assert declared <= usual.HEADERS_OF_ENDPOINTS, UNKNOWN


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
    assert {b"accept", b"authorization", b"range"} <= usual.HEADERS_WITH_MEANING


@pytest.mark.parametrize("name", sorted(usual.HEADERS_WITH_MEANING - {b"accept"}))
def test_a_header_with_a_meaning_is_unusual(name: bytes) -> None:
    """Whatever else there is."""
    headers = [(b"host", b"x"), (name, b"x"), (b"user-agent", b"x")]
    assert read_usual(b"/ipfs/x", headers, is_handed_over=True) is None


def test_what_is_usual() -> None:
    """Path, query and one `Accept`; other headers don't matter."""
    headers = [(b"host", b"x"), (b"accept", b"a/b"), (b"accept-encoding", b"gzip")]
    assert read_usual(b"/ipfs/x?a=b", headers, is_handed_over=True) == (b"/ipfs/x", b"a=b", b"a/b")
    assert read_usual(b"/ipfs/x", [*headers, (b"accept", b"c/d")], is_handed_over=True) is None
    for other in (b"/ipns/x", b"/ipfs", b"/v1/files", b"*", b"/ipfs/x#y"):
        assert read_usual(other, headers, is_handed_over=True) is None


def test_nginx_is_not_asked_for_what_is_small() -> None:
    """Where nothing that a lane answers would be handed over, that it could be says nothing."""
    headers = [(b"x-on-api-accel", b"1")]
    assert read_usual(b"/ipfs/x", headers, is_handed_over=False) is not None
