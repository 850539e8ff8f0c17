"""The operator's limits of requests, by key and by address: exact, told, and refused before any
work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import httpx
import pytest
from sqlalchemy import select

from on_api.core.limit_settings import LimitsSettings
from on_api.core.models import ApiKey
from on_api.core.server_settings import CorsSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import PASSWORD, DatabaseMaker, Server
from on_api.tests.testing.raw_http import wire_to
from on_api.tests.testing.structured_fields import read_list

TEN = {"burst_seconds": 600}
"""With one request a minute: ten at once, and no further one while a test runs."""

Serving = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def serving(sqlite_database: DatabaseMaker, settings_for: Callable[..., Settings]) -> Serving:
    """A server with these limits; `others` are other settings."""

    @contextmanager
    def serve(others: dict[str, object] | None = None, **limits: int) -> Iterator[Server]:
        chosen = LimitsSettings(**limits)
        with Server(settings_for(sqlite_database(), limits=chosen, **others or {})) as server:
            yield server

    return serve


def statuses(client: httpx.Client, path: str, times: int, **options: object) -> list[int]:
    """Of so many requests, one after the other."""
    return [client.get(path, **options).status_code for _ in range(times)]  # type: ignore[arg-type]


def test_each_key_has_its_own_limit(serving: Serving) -> None:
    """Exactly as many as are told, in both versions together; a refusal says why and when to come
    back, in the version's form."""
    with serving(requests_per_key=1, **TEN) as server:
        alice, bob = server.new_user(), server.new_user()
        with alice.client as client:
            answer = client.get("/v1/files")
            assert read_list(answer.headers["ratelimit-policy"]) == {"key": {"q": 10, "w": 600}}
            assert read_list(answer.headers["ratelimit"]) == {"key": {"r": 9, "t": 60}}
            assert statuses(client, "/v2/files", 9) == [200] * 9
            refused = client.get("/v1/files")
            assert refused.status_code == 429
            assert refused.json()["error"]["reason"] == "RATE_LIMITED"
            assert "with this key" in refused.json()["error"]["details"]
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            told = read_list(refused.headers["ratelimit"])
            assert told == {"key": {"r": 0, "t": int(refused.headers["retry-after"])}}
            refused = client.get("/v2/files")
            assert refused.headers["content-type"] == "application/problem+json"
            assert (refused.status_code, refused.json()["code"]) == (429, "RATE_LIMITED")
            assert server.count("on_api_rate_limited_total", limit="api_key") == 2
        with bob.client as client:
            assert client.get("/v1/files").headers["ratelimit"] == '"key";r=9;t=60'
        with server.client() as anonymous:  # no key that is valid: nothing to count for
            wrong = {"Authorization": f"Bearer {alice.key[:-1]}"}
            assert statuses(anonymous, "/v1/files", 12, headers=wrong) == [401] * 12


def test_the_limit_holds_for_many_at_once(serving: Serving) -> None:
    """Forty requests on as many connections, ten answers; uploads are requests like others."""
    with serving(requests_per_key=1, **TEN) as server:
        account = server.new_user()

        def send(number: int) -> int:
            with server.client(account.key) as client:
                if number % 2:
                    return client.get("/v1/users/me").status_code
                return client.put(f"/v1/files?name={number}", content=b"x").status_code

        with account.client, ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(send, range(40)))
        assert answers.count(429) == 30
        assert set(answers) <= {200, 201, 429}


def test_each_address_has_its_own_limit_before_any_work(serving: Serving) -> None:
    """Also logins, wrong keys and paths that nothing is at. Watchers ask as often as they like, and
    the gateway has limits of its own."""
    with serving(requests_per_address=1, **TEN) as server, server.client() as anonymous:
        cid = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
        form = {"username": "nobody", "password": PASSWORD}
        login = [anonymous.post("/v1/auth/token", data=form).status_code for _ in range(3)]
        assert login == [401] * 3
        assert statuses(anonymous, "/nowhere", 3) == [404] * 3
        assert statuses(anonymous, "/v1/files", 3) == [401] * 3
        last = anonymous.get("/s/no-link")
        assert (last.status_code, last.headers["ratelimit"]) == (404, '"address";r=0;t=600')
        refused = anonymous.post("/v1/auth/token", data=form)
        assert (refused.status_code, refused.json()["error"]["reason"]) == (429, "RATE_LIMITED")
        assert "from your address" in refused.json()["error"]["details"]
        page = anonymous.get("/s/no-link", headers={"Accept": "text/html"})
        assert (page.status_code, page.headers["content-type"][:9]) == (429, "text/html")
        assert page.headers["cache-control"] == "private, no-store"
        for path in ("/healthz", "/readyz", "/metrics"):
            assert statuses(anonymous, path, 15) == [200] * 15
            assert "ratelimit" not in anonymous.get(path).headers
        assert statuses(anonymous, f"/ipfs/{cid}", 15) == [404] * 15
        assert server.count("on_api_rate_limited_total", limit="api_ip") == 2


def test_both_limits_are_told(serving: Serving) -> None:
    """In one list; a refusal tells the limit that refuses."""
    with serving(requests_per_address=2, requests_per_key=1, **TEN) as server:
        account = server.new_user()
        with account.client as client:
            told = client.get("/v1/files").headers["ratelimit"]
            assert read_list(told) == {"address": {"r": 19, "t": 30}, "key": {"r": 9, "t": 60}}
            assert statuses(client, "/v1/files", 10) == [200] * 9 + [429]
            told = client.get("/v1/files").headers["ratelimit"]
            assert list(read_list(told)) == ["key"]


@pytest.mark.parametrize("believed", [True, False])
def test_addresses_behind_a_proxy(serving: Serving, believed: bool) -> None:
    """Those that a proxy tells, if it is believed; of IPv6 a network is one client. Else what a
    client tells of itself makes no difference."""
    others: dict[str, object] = {"trusted_proxies": ["127.0.0.1"]} if believed else {}
    with serving(others, requests_per_address=1, **TEN) as server, server.client() as client:

        def ask(address: str) -> int:
            return client.get("/v1/files", headers={"X-Forwarded-For": address}).status_code

        assert [ask(f"2001:db8::{number}") for number in range(10)] == [401] * 10
        assert ask("2001:db8::ffff") == 429
        elsewhere = ("2001:db8:0:1::1", "198.51.100.1", "::ffff:198.51.100.2")
        assert {ask(address) for address in elsewhere} == {401 if believed else 429}
        assert [ask("198.51.100.2") for _ in range(10)][-1] == 429


@pytest.mark.parametrize("limit", ["requests_per_key", "requests_per_address"])
def test_an_upload_is_refused_before_its_body_is_read(serving: Serving, limit: str) -> None:
    """The answer comes although not a byte was sent, also to a client that waits for a 100; one
    that sends all before it reads gets it too. Nothing is stored."""
    with serving(**{limit: 1}, burst_seconds=60) as server:
        account = server.new_user()
        head = (
            f"PUT /v1/files?name=x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {account.key}\r\n"
        ).encode()
        with account.client as client:
            assert client.get("/v1/files").status_code == 200
        for more, body in (
            (b"Content-Length: 50000000\r\n", b""),
            (b"Content-Length: 50000000\r\nExpect: 100-continue\r\n", b""),
            (b"Content-Length: 5000000\r\n", b"x" * 5_000_000),
            (b"Transfer-Encoding: chunked\r\n", b"2\r\nxx\r\n"),
        ):
            with wire_to(server.url) as wire:
                wire.send(head + more + b"\r\n", body)
                answer = wire.answer("PUT")
                assert (answer.status, b"RATE_LIMITED" in answer.body) == (429, True)
        with wire_to(server.url) as wire:  # without a body the connection goes on
            for _ in range(3):
                wire.send(head.replace(b"PUT", b"GET") + b"\r\n")
                assert wire.answer().status == 429
        assert server.count("on_api_uploads_total") == 0


def test_a_refusal_costs_no_use_of_a_key(serving: Serving) -> None:
    """Of one whose uses are counted: they are there when the time has come."""
    with serving(requests_per_key=1, **TEN) as server:
        account = server.new_user()
        with account.client:
            key = account.make_key("files:read", max_uses=20)
            with server.client(key) as client:
                assert statuses(client, "/v1/files", 15) == [200] * 10 + [429] * 5
        with server.services.database.session_scope(write=False) as session:
            assert session.scalar(select(ApiKey.uses).where(ApiKey.name == "narrow")) == 10


def test_an_app_in_a_browser_can_read_it(serving: Serving) -> None:
    """The refusal, and both headers; asking whether it may ask counts for nothing."""
    app = "https://app.example"
    others: dict[str, object] = {"cors": CorsSettings(origins=[app])}
    with serving(others, requests_per_address=1, burst_seconds=60) as server:
        with server.client() as client:
            asking = {"Origin": app, "Access-Control-Request-Method": "GET"}
            for _ in range(5):
                assert client.options("/v1/files", headers=asking).status_code == 200
            assert client.get("/v1/files", headers={"Origin": app}).status_code == 401
            refused = client.get("/v1/files", headers={"Origin": app})
        assert refused.status_code == 429
        assert refused.headers["access-control-allow-origin"] == app
        exposed = set(refused.headers["access-control-expose-headers"].split(", "))
        assert {"RateLimit", "RateLimit-Policy", "Retry-After"} <= exposed


def test_by_default_nothing_is_limited_nor_told(server: Server) -> None:
    """No header, no middleware."""
    account = server.new_user()
    with account.client as client:
        for path in ("/v1/files", "/v2/files", "/v1/users/me"):
            assert not [name for name in client.get(path).headers if "ratelimit" in name]
    names = [getattr(each.cls, "__name__", "") for each in server.app.user_middleware]
    assert "RequestLimits" not in names
