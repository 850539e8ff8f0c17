"""Backups taken while people upload, delete and pin, some of them killed in the middle: each is
restored, and has every file that was acknowledged before it began."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from on_api.tests.conftest import DatabaseMaker
from on_api.tests.testing.backups import (
    content_of,
    expire_turns,
    passphrase_file,
    reading,
    restore,
    running,
)
from on_api.tests.testing.deadline import until
from on_api.tests.testing.processes import Home

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="starts and kills whole process trees, as on Linux"
)

SIZES = (10, 5_000, 200_000, 1_100_000)
MOST_FILES = 60
"""Files that one client keeps: the load lasts for as long as one likes, and the disk too."""
PAUSE_SECONDS = 0.02


@dataclass
class Client:
    """A client that uploads, deletes and pins until told to stop, and knows what was promised."""

    home: Home
    key: str
    stopping: threading.Event
    stored: dict[str, bytes] = field(default_factory=dict)
    """Bytes of every 201, by id."""
    cids: list[str] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)
    """Files whose deletion was asked for."""

    def run(self) -> None:
        """Work, in a thread."""
        with self.home.client(self.key) as client:
            while not self.stopping.wait(PAUSE_SECONDS):
                kept = [each for each in self.stored if each not in self.deleted]
                if len(kept) > MOST_FILES or (kept and random.random() < 0.2):
                    self._delete(client, random.choice(kept))
                elif self.cids and random.random() < 0.1:
                    client.post("/v1/pins", json={"cid": random.choice(self.cids)})
                else:
                    self._upload(client)

    def _upload(self, client: httpx.Client) -> None:
        data = os.urandom(random.choice(SIZES))
        query = {"name": "x", "visibility": random.choice(("public", "public", "private"))}
        answer = client.put("/v1/files", params=query, content=data)
        if answer.status_code == 201:
            self.cids.append(answer.json()["cid"])
            self.stored[answer.json()["id"]] = data
        else:
            assert answer.status_code == 503, answer.text  # garbage is being collected

    def _delete(self, client: httpx.Client, file_id: str) -> None:
        self.deleted.add(file_id)
        client.delete(f"/v1/files/{file_id}")


def promised(clients: Sequence[Client]) -> dict[str, bytes]:
    """Return what is acknowledged at this moment."""
    return {
        file_id: data
        for client in clients
        for file_id, data in list(client.stored.items())
        if file_id not in client.deleted
    }


def wait_until(moment: float) -> None:
    """Wait for a moment of `time.monotonic`."""
    until(lambda: time.monotonic() >= moment, "the next backup is due", 1200)


def take(home: Home, folder: Path, given: str, *, kill: bool, at_once: bool) -> None:
    """Take a backup; with `kill` one that is killed comes before. The next one waits for the end of
    its turn, unless that is brought about `at_once`."""
    command = ("backup", str(folder), "--passphrase-file", given)
    if kill:
        before = len(list(folder.glob("blocks/*/*")))
        with running(home, *command) as process:
            until(
                lambda: len(list(folder.glob("blocks/*/*"))) > before or process.poll() is not None,
                "some blocks are copied",
                120,
            )
        if at_once:
            expire_turns(home.extra.get("ON_API_DATABASE_URL", sqlite_of(home)))
    done = home.run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


def sqlite_of(home: Home) -> str:
    """Return the URL of a home's SQLite database."""
    return f"sqlite:///{home.path / 'on-api.db'}"


@pytest.mark.parametrize(
    ("seconds", "backups", "kills"),
    [
        pytest.param(0, 1, {0}, marks=pytest.mark.timeout(600)),
        pytest.param(1200, 10, {0, 5}, marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
def test_nothing_acknowledged_is_missing(
    new_database: DatabaseMaker,
    tmp_path: Path,
    seconds: int,
    backups: int,
    kills: set[int],
    request: pytest.FixtureRequest,
) -> None:
    """On both databases; garbage is collected between the backups."""
    is_postgres = "postgres" in request.node.callspec.id

    def database() -> dict[str, str]:
        return {"ON_API_DATABASE_URL": new_database()} if is_postgres else {}

    (tmp_path / "old").mkdir()
    home = Home(tmp_path / "old" / "home", extra={"ON_API_GC__GRACE": "1", **database()})
    key = home.init()
    folder, given = tmp_path / "backup", passphrase_file(tmp_path)
    stopping = threading.Event()
    clients = [Client(home, key, stopping) for _ in range(4)]
    with home.serving():
        threads = [threading.Thread(target=each.run, daemon=True) for each in clients]
        for thread in threads:
            thread.start()
        try:
            began = time.monotonic()
            for number in range(backups):
                wait_until(began + number * seconds / backups)
                until(lambda: len(promised(clients)) > 30, "there is something to save", 120)
                expected = promised(clients)
                take(home, folder, given, kill=number in kills, at_once=seconds == 0)
                if seconds == 0:
                    stopping.set()  # the rest needs no load
                gone = set().union(*(each.deleted for each in clients))
                new = Home(tmp_path / f"new-{number}" / "home", extra=database())
                assert restore(new, folder)["fsck"]["clean"]
                with reading(new, key) as client:
                    for file_id, data in expected.items():
                        if file_id not in gone:
                            assert content_of(client, file_id) == data
                home.run("gc")
        finally:
            stopping.set()
            for thread in threads:
                thread.join(60)
        assert sum(len(each.stored) for each in clients) > 30
        assert home.run("fsck").returncode == 0
