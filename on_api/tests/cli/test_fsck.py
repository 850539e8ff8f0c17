"""`on-api fsck` as an operator runs it after a restore."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator

import pytest
from sqlalchemy import delete

from on_api.core.models import Content, File, Holding
from on_api.core.services.upkeep.node import connect_node
from on_api.core.setting_groups import WorkerSettings
from on_api.tests.cli.test_imports import run
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.blockstore import Blockstore


@pytest.fixture(scope="module")
def server(
    kubo: Kubo, sqlite_database: DatabaseMaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Without a worker, which would mend things first."""
    settings = make_settings(
        tmp_path_factory.mktemp("fsck"),
        sqlite_database(),
        ipfs=kubo.ipfs,
        worker=WorkerSettings(embedded=False),
    )
    with Server(settings) as running:
        yield running


def unpin(server: Server, cid: str) -> None:
    """Behind on-api's back."""

    async def work() -> None:
        async with connect_node(server.settings) as node:
            await node.unpin(cid)

    asyncio.run(work())


def test_an_older_node(server: Server, alice: Account, kubo: Kubo) -> None:
    """Listed for scripts without a change, asked for people, dropped when it is confirmed."""
    lost = alice.upload(os.urandom(700), "lost.txt")
    unpin(server, str(lost["cid"]))
    Blockstore(kubo.home / "ipfs").take(str(lost["cid"]))
    listed = run(server, "fsck", "--drop-lost", "--json")
    assert listed.returncode == 1, listed.stderr
    told = json.loads(listed.stdout)
    assert told["dropped"] == []
    [loss] = told["lost"]
    [reference] = loss["references"]
    assert (loss["cid"], reference["id"]) == (lost["cid"], lost["id"])
    assert (reference["username"], reference["name"]) == (alice.username, "lost.txt")
    asked = run(server, "fsck", "--drop-lost")  # nobody answers
    assert asked.returncode == 1
    assert "lost.txt" in asked.stdout
    assert alice.client.get("/v1/files").json()["count"] == 1
    collection = run(server, "gc")
    assert collection.returncode == 1
    assert "--drop-lost" in collection.stdout
    dropped = run(server, "fsck", "--drop-lost", "--yes")
    assert dropped.returncode == 0, dropped.stdout
    assert "1 of 1" in dropped.stdout
    assert alice.client.get("/v1/files").json()["count"] == 0
    assert run(server, "gc").returncode == 0


def test_an_older_database(server: Server, alice: Account) -> None:
    """A repair says when a pin that it doesn't know will go; `--now` doesn't wait."""
    cid = str(alice.upload(os.urandom(800), "newer")["cid"])
    with server.services.database.session_scope() as session:
        for table in (File, Holding, Content):
            session.execute(delete(table).where(table.cid == cid))
    # What is counted is mended first.
    repaired = run(server, "fsck", "--repair", "--json")
    assert repaired.returncode == 0, repaired.stdout
    report = json.loads(repaired.stdout)
    [finding] = [each for each in report["findings"] if each["subject"] == cid]
    assert finding["deferred"]
    assert finding["due_at"]
    assert "later   orphan_pin" in run(server, "fsck", "--repair").stdout
    assert run(server, "fsck", "--now").returncode == 2
    now = run(server, "fsck", "--repair", "--now")
    assert now.returncode == 0
    assert "mended  orphan_pin" in now.stdout
    assert cid not in run(server, "fsck").stdout
