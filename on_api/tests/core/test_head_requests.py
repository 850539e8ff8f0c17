"""HEAD wherever GET is, and paths with a slash at their end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from on_api.core.server_settings import CorsSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Server
from on_api.tests.contract.test_openapi import OPERATIONS, Operation, call, some_ids

READS = [operation for operation in OPERATIONS if operation.method == "GET"]
OTHER_PAGES = ["/healthz", "/readyz", "/metrics", "/docs", "/v1/docs", "/v2/openapi.json"]


@pytest.mark.parametrize("operation", READS, ids=str)
def test_head_answers_as_get_does(alice: Account, operation: Operation) -> None:
    """The status, and the headers that tell of the body; never the body."""
    ids = some_ids(operation, user_id=alice.id)
    got = call(alice.client, operation, **ids)
    path = operation.path.format(**ids) if ids else operation.path
    headed = alice.client.head(path)
    assert (headed.status_code, headed.content) == (got.status_code, b"")
    for name in ("content-type", "cache-control", "allow"):
        assert headed.headers.get(name) == got.headers.get(name)


@pytest.mark.parametrize("page", OTHER_PAGES)
def test_head_of_what_is_outside_the_versions(anonymous: httpx.Client, page: str) -> None:
    """As link checkers and uptime monitors ask."""
    headed = anonymous.head(page)
    assert (headed.status_code, headed.content) == (200, b"")


def test_a_connection_goes_on_after_head(alice: Account) -> None:
    """An export's head is told without the export being made; what follows is the next answer."""
    alice.upload(b"x" * 100_000)
    for _ in range(3):
        assert alice.client.head("/v1/users/me/export").status_code == 200
        assert alice.client.get("/v1/files").json()["count"] == 1


def test_head_is_allowed_where_get_is(alice: Account) -> None:
    """And said to be."""
    answer = alice.client.request("PUT", "/v1/users/me")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD, PATCH"


@pytest.fixture
def server_with(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> Iterator[Callable[..., Server]]:
    """Starts a server with other settings."""
    running: list[Server] = []

    def start(**changes: Any) -> Server:
        server = Server(settings_for(new_database(), **changes))
        running.append(server)
        return server.__enter__()

    yield start
    for server in running:
        server.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("public_url", "location"),
    [
        (None, "/v1/files?name=a%20b"),
        ("https://files.example/api", "https://files.example/api/v1/files?name=a%20b"),
    ],
)
def test_a_slash_too_many(
    server_with: Callable[..., Server], public_url: str | None, location: str
) -> None:
    """Where to is told by us: never by the Host that the client names."""
    with server_with(public_url=public_url).client() as client:
        for method in ("GET", "HEAD", "PUT", "POST"):
            answer = client.request(
                method, "/v1/files/?name=a%20b", headers={"Host": "evil.example"}
            )
            assert (answer.status_code, answer.headers["location"]) == (307, location)
        for path in ("/nothing/", "//evil.example/", "/v1/nothing/"):
            assert client.get(path).status_code == 404


def test_a_browser_may_read_the_500(
    server_with: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its program sees a failed fetch and no request's id to report."""
    origin = "https://app.example"
    server = server_with(cors=CorsSettings(origins=[origin]))

    async def broken(*_: object) -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    monkeypatch.setattr(server.services.node, "version", broken)
    with server.new_user(admin=True).client as client:
        answer = client.get("/v1/node", headers={"Origin": origin})
    assert answer.status_code == 500
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["x-request-id"] in answer.json()["error"]["details"]
