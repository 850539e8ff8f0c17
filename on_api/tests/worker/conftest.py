"""A network of three private Kubos, and on-api on one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.setting_groups import GcSettings, PinsSettings, WorkerSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.network import Peer

MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """The Kubo of the on-api under test."""
    yield from _running(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A Kubo that has what is to be pinned."""
    yield from _running(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def bystander(here: Peer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A Kubo that `here` is connected to and that has nothing."""
    for peer in _running(tmp_path_factory.mktemp("bystander")):
        here.meet(peer)
        yield peer


def _running(home: Path) -> Iterator[Peer]:
    peer = Peer(home)
    peer.start()
    try:
        yield peer
    finally:
        peer.stop()


@pytest.fixture
def on_here(here: Peer, settings_for: MakeSettings, sqlite_database: DatabaseMaker) -> MakeSettings:
    """Settings of an on-api on `here`, quick at everything, with a database of its own; anything
    may be changed by name."""

    def make(database_url: str | None = None, **changes: Any) -> Settings:
        return settings_for(
            database_url or sqlite_database(),
            **{
                "ipfs": here.ipfs,
                "pins": PinsSettings(deadline=60, patience=30, dial_private=True),
                "worker": WorkerSettings(poll=0.2, lease_seconds=5),
                "gc": GcSettings(grace=3600, interval=0),
                **changes,
            },
        )

    return make


@contextmanager
def account_of(server: Server, *, admin: bool = False) -> Iterator[Account]:
    """A new user of a server."""
    account = server.new_user(admin=admin)
    with account.client:
        yield account


def pin(account: Account, cid: str, **more: Any) -> str:
    """Ask for a pin; returns its id."""
    answer = account.client.post("/v1/pins", json={"cid": cid, **more})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["requestid"])


def look(account: Account, pin_id: str) -> dict[str, Any]:
    """A pin as its user sees it, `info` always there."""
    answer = account.client.get(f"/v1/pins/{pin_id}")
    assert answer.status_code == 200, answer.text
    return {"info": {}, **answer.json()}


def ended(account: Account, pin_id: str, seconds: float = 20) -> dict[str, Any]:
    """Wait for the end of a pin; returns it."""

    def over() -> dict[str, Any] | None:
        seen = look(account, pin_id)
        return seen if seen["status"] in {"pinned", "failed"} else None

    return until(over, f"pin {pin_id} ends", seconds)


def new_cid() -> str:
    """Of content that nobody has."""
    return build_file(os.urandom(100)).cid
