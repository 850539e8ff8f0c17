"""Moving from one on-api to another, between real nodes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from on_api.core.models import UserUsage
from on_api.core.setting_groups import ImportsSettings, PinsSettings, WorkerSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import PASSWORD, Account, DatabaseMaker, Server, make_settings
from on_api.tests.testing.deadline import until
from on_api.tests.testing.invariants import check_invariants
from on_api.tests.testing.migration import (
    MIB,
    Pinned,
    ask,
    facts_of,
    fill,
    look,
    over,
    pins_of,
    previewed,
    report_of,
)
from on_api.tests.testing.network import Peer
from on_api.tests.testing.processes import working
from on_api.tests.worker.conftest import account_of, ended, pin

QUICK = {
    "pins": PinsSettings(deadline=60, patience=30, dial_private=True),
    "worker": WorkerSettings(poll=0.1, lease_seconds=5),
    "imports": ImportsSettings(allow_private=True, patience=10, retries=2, longest_pause=0.5),
}


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Peer]]:
    """The node to leave, and three that know nobody."""
    made = [Peer(tmp_path_factory.mktemp(name)) for name in ("old", "b", "c", "d")]
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


@pytest.fixture(scope="module", params=[(30, 8), pytest.param((297, 200), marks=pytest.mark.soak)])
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


def dates_of(account: Account, *path: str) -> set[tuple[str, str | None, str]]:
    """By CID and name a date of each pin, of two alike the later one."""
    dates: dict[tuple[str, str | None], str] = {}
    for each in account.client.get("/v1/pins", params={"limit": 1000}).json()["results"]:
        value: Any = each
        for step in path:
            value = value[step]
        key = each["pin"]["cid"], each["pin"].get("name")
        dates[key] = max(value, dates.get(key, value))
    return {(*key, value) for key, value in dates.items()}


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
        assert report["verdict"].startswith("Everything was imported and verified"), report[
            "verdict"
        ]
        assert all(item["verified"] for item in report["items"])
        assert {item["route"] for item in report["items"]} <= {"ipfs", "local", None}
        check_moved(ben, wanted, peers[1], peers[0])
        assert dates_of(ben, "info", "source_created_at") == dates_of(account, "created")
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


def test_from_another_on_api(
    old: Server, peers: list[Peer], postgres_database: DatabaseMaker, tmp_path: Path
) -> None:
    """Files stay files, private ones private and readable, by the identity that comes with them;
    pins stay pins. Without the password the private ones are named."""
    with account_of(old) as account:
        public = account.upload(os.urandom(2 * MIB), "Öffentlich", meta='{"deep": {"n": [1]}}')
        empty = account.upload(b"", "empty")
        data = os.urandom(3 * MIB)
        private = account.upload(data, "geheim", visibility="private")
        short = account.upload(b"short", "kurz", visibility="private")
        pinned = peers[0].add(os.urandom(1000), pinned=False)
        ended(account, pin(account, pinned, name="a pin"))
        source = {"kind": "on_api", "endpoint": old.url, "token": account.key}
        settings = new_settings(tmp_path, postgres_database(), peers[1])
        with Server(settings) as server, account_of(server) as ben:
            done = over(ben, ask(ben, source=source, start=True)["id"])
            assert (done["status"], done["done"], done["failed"]) == ("done", 3, 2)
            verdict = report_of(ben, done["id"])["verdict"]
            assert str(private["cid"]) in verdict
            assert "private at the source" in verdict
            login = {"username": account.username, "password": PASSWORD}
            done = over(ben, ask(ben, source={**source, **login}, start=True)["id"])
            assert done["status"] == "done", report_of(ben, done["id"])["verdict"]
            assert (done["total"], done["done"], done["skipped"]) == (5, 5, 3)
            files = {each["name"]: each for each in ben.client.get("/v1/files").json()["items"]}
            kept = ("cid", "name", "size", "media_type", "sha256", "visibility", "meta")
            for each in (public, empty, private, short):
                mine = files[str(each["name"])]
                assert {name: mine[name] for name in kept} == {name: each[name] for name in kept}
                assert mine["source_created_at"] == each["created_at"]
                assert mine["id"] != each["id"]
            content = ben.client.get(f"/v1/files/{files['geheim']['id']}/content")
            assert content.content == data
            assert [(each.cid, each.name) for each in pins_of(ben)] == [(pinned, "a pin")]
            check_invariants(server.services.database, peers[1].pins().keys())
        settings = new_settings(tmp_path, postgres_database(), peers[2])
        with Server(settings) as server, account_of(server) as cem:
            # From its own gateway, which gives out what is public.
            done = over(
                cem, ask(cem, source={**source, **login}, route="gateway", start=True)["id"]
            )
            report = report_of(cem, done["id"])
            assert (done["done"], done["failed"]) == (3, 2), report["verdict"]
            assert {item["cid"] for item in report["items"] if item["status"] == "failed"} == {
                private["cid"], short["cid"],
            }  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="signals as on Linux")
def test_killed_at_random_moments(
    old: Server,
    ada: tuple[Account, list[Pinned]],
    peers: list[Peer],
    postgres_database: DatabaseMaker,
    tmp_path: Path,
) -> None:
    """`kill -9` again and again: the report says in the end what it would have said without."""
    account, wanted = ada
    settings = make_settings(
        tmp_path,
        postgres_database(),
        ipfs=peers[3].ipfs,
        **{**QUICK, "worker": WorkerSettings(embedded=False, poll=0.1, lease_seconds=2)},
    )
    with Server(settings) as server, account_of(server) as ben:
        asked = ask(
            ben,
            source=source_of(old, account),
            gateway_url=peers[0].ipfs.gateway_url,
            start=True,
        )
        deaths = 0

        def goes_on(before: dict[str, Any]) -> bool:
            seen = look(ben, asked["id"])
            return progress_of(seen) > progress_of(before) or seen["status"] != "running"

        most = 2 if len(wanted) < 100 else 60
        while (before := look(ben, asked["id"]))["status"] == "running" and deaths < most:
            with worker_process(settings) as process:
                until(partial(goes_on, before), "it goes on", 60)
                # The moment is the thing under test, and must be random.
                time.sleep(random.uniform(0.0, 0.4))
                process.kill()
                deaths += 1
        with worker_process(settings):
            done = over(ben, asked["id"], 600)
            report = report_of(ben, asked["id"])
            assert done["status"] == "done", report["verdict"]
            assert facts_of(report) == undisturbed(wanted, peers[0])
            check_moved(ben, wanted, peers[3], peers[0])
            until(lambda: nothing_reserved(server), "what dead leases reserved is given back", 90)
            check_invariants(server.services.database, peers[3].pins().keys())


def undisturbed(wanted: list[Pinned], source: Peer) -> list[dict[str, Any]]:
    """The facts of the report of an import that nothing has happened to."""
    facts: list[dict[str, Any]] = []
    for position, each in enumerate(reversed(wanted)):
        stat = source.stat(each.cid)
        is_first = all((each.cid, each.name) != (one["cid"], one["name"]) for one in facts)
        facts.append(
            {
                "position": position,
                "status": "done" if is_first else "skipped",
                "cid": each.cid,
                "name": each.name,
                "size": stat[0],
                "bytes": stat[0],
                "blocks": stat[1],
                "verified": True,
                "reason": None,
            }
        )
    return facts


def progress_of(seen: dict[str, Any]) -> tuple[int, ...]:
    """Grows while an import goes on."""
    return seen["total"], seen["done"], seen["bytes_under_way"]


def nothing_reserved(server: Server) -> bool:
    """No lease holds anything back."""
    with server.services.database.session_scope(write=False) as session:
        return all(each.reserved_bytes == 0 for each in session.scalars(select(UserUsage)))


def worker_process(settings: Settings) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """`on-api worker`, working; killed in the end."""
    return working(
        settings,
        lease_seconds=2,
        ON_API_PINS__DIAL_PRIVATE="true",
        ON_API_IMPORTS__ALLOW_PRIVATE="true",
        ON_API_IMPORTS__PATIENCE="10",
    )
