"""What anybody may cause waits for itself: work for people without a key takes no thread that
requests with one need (ADR 28)."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from on_api.core.services.accounts.strangers import SHARE_DIVISOR
from on_api.core.services.content import private_blocks
from on_api.core.services.files import private_files
from on_api.core.setting_groups import GatewaySettings
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.gates import Gate
from on_api.tests.testing.shares import share

AT_ONCE = 12
"""More than there are threads."""


@pytest.fixture
def settings(settings_for: Callable[..., Settings], sqlite_database: DatabaseMaker) -> Settings:
    """Of a server with few threads, whose gateway serves what the node has."""
    gateway = GatewaySettings(policy="local")
    return settings_for(sqlite_database(), threads=SHARE_DIVISOR, gateway=gateway)


@pytest.mark.parametrize("asked_for", ["a link to a private file", "a block of the node"])
def test_strangers_wait_for_themselves(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, asked_for: str
) -> None:
    """All of them are held at their database work, and somebody with a key is answered: also when
    that key has to be looked up anew, because something was revoked or its uses are counted."""
    data = os.urandom(1000)
    with Server(settings) as server, ExitStack() as stack:
        ada = server.new_user()
        with ada.client, server.client() as anonymous, ThreadPoolExecutor(AT_ONCE) as clients:
            wanted = {"name": "a key", "scopes": ["files:read"]}
            other = ada.client.post("/v1/keys", json=wanted).json()
            counted = stack.enter_context(server.client(ada.make_key("files:read", max_uses=9)))
            assert counted.get("/v1/files").status_code == 200
            file = ada.upload(data, visibility="private")
            if asked_for == "a block of the node":
                path = f"/ipfs/{ada.upload(data)['cid']}"
                gate = held(monkeypatch, private_blocks, "select")
            else:
                path = share(ada, file).path
                gate = held(monkeypatch, private_files, "unlock")
            try:
                answers = [clients.submit(anonymous.get, path) for _ in range(AT_ONCE)]
                waiting = server.services.strangers
                until(lambda: gate.held + waiting.waiting == AT_ONCE, "all have come")
                assert ada.client.delete(f"/v1/keys/{other['id']}", timeout=20).is_success
                known = ada.client.get("/v1/files", timeout=20)
                assert (known.status_code, gate.held) == (200, 1)
                assert counted.get("/v1/files", timeout=20).status_code == 200
            finally:
                gate.open()
            assert {answer.result(60).content for answer in answers} == {data}


def held(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> Gate:
    """A gate before a function that a module calls."""
    gate = Gate()
    real: Callable[..., object] = getattr(module, name)

    def function(*args: object, **kwargs: object) -> object:
        gate.wait()
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, function)
    return gate
