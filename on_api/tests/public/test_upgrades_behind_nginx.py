"""Requests through nginx that keeps its connections to on-api, also with the lines for WebSockets
that many have in their configuration: a client's offer to upgrade is passed on then, over
connections on which other people's requests follow."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import httpx
import pytest

from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server, free_port, make_settings
from on_api.tests.testing.deadline import until
from on_api.tests.testing.nginx import nginx
from on_api.tests.testing.programs import needs
from on_api.tests.testing.raw_http import RawAnswer, wire_to

pytestmark = [pytest.mark.clients, needs("nginx", "openssl")]

WEBSOCKETS = {
    "http {": "http {\n map $http_upgrade $connection_upgrade { default upgrade; '' ''; }",
    "        proxy_ignore_client_abort": (
        "        proxy_set_header Upgrade $http_upgrade;\n        proxy_ignore_client_abort"
    ),
    'Connection "";\n        proxy_set_header Upgrade': (
        "Connection $connection_upgrade;\n        proxy_set_header Upgrade"
    ),
}
"""What is in place of what."""
INNER = b"GET /v1/users/me HTTP/1.1\r\nHost: a\r\n\r\n"
OFFER = "Connection: Upgrade\r\nUpgrade: %s\r\n"


@dataclass(frozen=True)
class Front:
    """nginx before a server."""

    url: str
    server: Server
    tls: ssl.SSLContext


@pytest.fixture(scope="module", params=["deploy/nginx.conf", "with WebSockets"])
def front(
    request: pytest.FixtureRequest,
    sqlite_database: DatabaseMaker,
    kubo: Kubo,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Front]:
    """Both ways to write it."""
    folder = tmp_path_factory.mktemp("nginx")
    settings: Settings = make_settings(
        folder / "home", sqlite_database(), ipfs=kubo.ipfs, trusted_proxies=["127.0.0.1"]
    )
    tls, plain = free_port(), free_port()
    changes = {
        "listen 443 ssl http2;": f"listen 127.0.0.1:{tls} ssl;",
        "listen 80;": f"listen 127.0.0.1:{plain};",
    }
    if request.param != "deploy/nginx.conf":
        changes |= WEBSOCKETS
    with ExitStack() as stack:
        server = stack.enter_context(Server(settings))
        node = str(kubo.ipfs.gateway_url)
        stack.enter_context(nginx(folder, server.url, node, changes, accel=False))
        trusted = ssl.create_default_context(cafile=str(folder / "certificate"))
        made = Front(f"https://127.0.0.1:{tls}", server, trusted)
        with httpx.Client(verify=trusted, trust_env=False) as client:

            def answers() -> bool:
                try:
                    return client.get(f"{made.url}/healthz").status_code == 200
                except httpx.TransportError:
                    return False

            until(answers, "nginx answers")
        yield made


@pytest.fixture
def ada(front: Front) -> Iterator[Account]:
    """Somebody."""
    account = front.server.new_user()
    with account.client:
        yield account


def asked(front: Front, account: Account, request: str, body: bytes, more: str = "") -> RawAnswer:
    """What is answered to a request over a connection of its own."""
    head = (
        f"{request} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {account.key}\r\n"
        f"Content-Length: {len(body)}\r\n{more}\r\n"
    )
    with wire_to(front.url, front.tls) as wire:
        wire.send(head.encode(), body)
        return wire.answer()


@pytest.mark.parametrize("offer", ["h2c", "websocket", "foo/1, bar"])
def test_a_body_is_no_request_of_the_next_client(front: Front, ada: Account, offer: str) -> None:
    """Who asks next, over the connection that nginx has kept, gets their own answer; and the file
    has its bytes."""
    bodies = [INNER, INNER * 2000, os.urandom(300_000)]
    for body in bodies * 2:
        told = asked(front, ada, "PUT /v1/files?name=x", body, OFFER % offer)
        assert (told.status, json.loads(told.body)["size"]) == (201, len(body))
        for _ in range(3):
            nobody = asked(front, ada, "GET /healthz", b"")
            assert (nobody.status, nobody.body) == (200, b'{"status":"ok"}')
    for request, status in (("GET /healthz", 200), ("POST /v1/keys", 400), ("DELETE /v1/x", 404)):
        assert asked(front, ada, request, INNER, OFFER % offer).status == status
        assert asked(front, ada, "GET /healthz", b"").body == b'{"status":"ok"}'


def test_what_is_refused_early_is_answered(front: Front, ada: Account) -> None:
    """Through nginx, which sends a body on as it comes; and the next one isn't harmed by it."""
    body = bytes(20_000_000)
    for more in ("", "Connection: close\r\n"):
        for _ in range(4):
            assert asked(front, ada, "PUT /v1/nothing", body, more).status in (404, 405)
            assert asked(front, ada, "GET /healthz", b"").status == 200


def test_what_is_no_request_for_on_api(front: Front, ada: Account) -> None:
    """nginx lets more through than on-api takes; nobody else's request suffers."""
    for more in ("Transfer-Encoding: chunked\r\n", "A : b\r\n", "Host: b\r\n"):
        assert asked(front, ada, "PUT /v1/files", INNER, more).status in (200, 400, 401, 404)
        assert asked(front, ada, "GET /healthz", b"").body == b'{"status":"ok"}'
