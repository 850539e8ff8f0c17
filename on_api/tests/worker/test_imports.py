"""Moving from one on-api to another, between real nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from on_api.core.setting_groups import ImportsSettings, PinsSettings, WorkerSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Server, make_settings
from on_api.tests.worker.conftest import account_of
from on_api.tests.worker.invariants import check_invariants
from on_api.tests.worker.migration import (
    MIB,
    Pinned,
    ask,
    facts_of,
    fill,
    over,
    pins_of,
    previewed,
    report_of,
)
from on_api.tests.worker.network import Peer

QUICK = {
    "pins": PinsSettings(deadline=60, patience=30, dial_private=True),
    "worker": WorkerSettings(poll=0.05, lease_seconds=5),
    "imports": ImportsSettings(allow_private=True, patience=10, retries=2, longest_pause=0.5),
}


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Peer]]:
    """The node to leave, and two that know nobody."""
    made = [Peer(tmp_path_factory.mktemp(name)) for name in ("old", "new", "third")]
    try:
        for peer in made:
            peer.start()
        yield made
    finally:
        for peer in made:
            peer.stop()


@pytest.fixture(scope="module")
def old(
    peers: list[Peer], sqlite_database: DatabaseMaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The on-api to leave."""
    home = tmp_path_factory.mktemp("old-home")
    with Server(make_settings(home, sqlite_database(), ipfs=peers[0].ipfs, **QUICK)) as running:
        yield running


@pytest.fixture(scope="module", params=[(36, 8), pytest.param((297, 200), marks=pytest.mark.soak)])
def ada(
    request: pytest.FixtureRequest, old: Server, peers: list[Peer]
) -> Iterator[tuple[Account, list[Pinned]]]:
    """Who leaves it, and what they have there."""
    files, large = request.param
    with account_of(old) as account:
        yield account, fill(account, peers[0], files=files, large=large * MIB)


def new_settings(home: Path, url: str, peer: Peer) -> Settings:
    """Of the on-api to go to."""
    return make_settings(home, url, ipfs=peer.ipfs, **QUICK)


def source_of(old: Server, account: Account) -> dict[str, str]:
    """The old on-api as any Pinning Service."""
    return {"kind": "pinning_api", "endpoint": f"{old.url}/v1", "token": account.key}


def check_moved(account: Account, wanted: list[Pinned], peer: Peer, source: Peer) -> None:
    """The same pins, and the same bytes."""
    different = {(each.cid, each.name): each for each in wanted}
    found = pins_of(account)
    assert {(each.cid, each.name): each for each in found} == different
    assert len(found) == len(different)
    for cid in {each.cid for each in found}:
        assert peer.car(cid) == source.car(cid)


def test_by_the_pinning_api_over_ipfs(
    old: Server,
    ada: tuple[Account, list[Pinned]],
    peers: list[Peer],
    postgres_database: DatabaseMaker,
    tmp_path: Path,
) -> None:
    """Preview, start, report; everything is there; a second import moves nothing."""
    account, wanted = ada
    settings = new_settings(tmp_path, postgres_database(), peers[1])
    with Server(settings) as server, account_of(server) as ben:
        asked = ask(ben, source=source_of(old, account), route="ipfs")
        assert asked["status"] == "draft"
        assert account.key not in str(asked)
        seen = previewed(ben, asked["id"])
        assert seen["preview"] == {
            "complete": True, "items": len(wanted), "known_bytes": seen["preview"]["known_bytes"],
            "unknown_sizes": 0, "already_here": 0, "already_here_bytes": 0, "quota_left": None,
            "fits": True,
        }  # fmt: skip
        assert seen["preview"]["known_bytes"] > 8 * MIB
        assert ben.client.post(f"/v1/imports/{asked['id']}/start").status_code == 202
        done = over(ben, asked["id"], 600)
        report = report_of(ben, asked["id"])
        assert done["status"] == "done", report["verdict"]
        assert (done["total"], done["done"], done["failed"]) == (len(wanted), len(wanted), 0)
        assert done["skipped"] == 1  # the same pin twice
        assert report["verdict"].startswith("Everything was moved and verified"), report["verdict"]
        assert all(item["verified"] for item in report["items"])
        assert {item["route"] for item in report["items"]} <= {"ipfs", "local", None}
        check_moved(ben, wanted, peers[1], peers[0])
        again = over(ben, ask(ben, source=source_of(old, account), start=True)["id"], 600)
        assert (again["status"], again["done"]) == ("done", len(wanted))
        assert (again["skipped"], again["bytes"]) == (len(wanted), 0)
        assert len(pins_of(ben)) == len(wanted) - 1
        check_invariants(server.services.database, peers[1].pins().keys())


def test_from_a_gateway_alone(
    old: Server,
    ada: tuple[Account, list[Pinned]],
    peers: list[Peer],
    postgres_database: DatabaseMaker,
    tmp_path: Path,
) -> None:
    """Without a connection between the nodes: the same, and the same facts in the report."""
    account, wanted = ada
    settings = new_settings(tmp_path, postgres_database(), peers[2])
    with Server(settings) as server, account_of(server) as ben:
        asked = ask(
            ben,
            source=source_of(old, account),
            route="gateway",
            gateway_url=peers[0].ipfs.gateway_url,
            start=True,
        )
        done = over(ben, asked["id"], 600)
        report = report_of(ben, asked["id"])
        assert done["status"] == "done", report["verdict"]
        assert {item["route"] for item in report["items"]} <= {"gateway", "local", None}
        assert not peers[2].peers()
        check_moved(ben, wanted, peers[2], peers[0])
        assert facts_of(report)
        check_invariants(server.services.database, peers[2].pins().keys())
