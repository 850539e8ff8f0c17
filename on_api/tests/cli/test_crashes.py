"""`kill -9` at random moments of concurrent uploads: what was promised holds after the restart."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from on_api.core.ipfs.daemon.repo import rpc_auth_of
from on_api.core.ipfs.formats.cid import Cid, normalise
from on_api.core.ipfs.formats.dag import DAG_CBOR
from on_api.core.ipfs.kubo.control import authorization
from on_api.core.models import Content, Database, File, Holding, Lease, UserUsage
from on_api.core.settings import Settings
from on_api.tests.testing.deadline import until
from on_api.tests.testing.plain_http import NO_TLS
from on_api.tests.testing.processes import Home

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="starts and kills whole process trees, as on Linux"
)


EMPTY_FOLDER = normalise("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn")
"""Pinned by `ipfs init` itself, without a name."""


@dataclass
class Uploader:
    """Uploads fresh bytes until told to stop; remembers what was promised."""

    home: Home
    key: str
    stopping: threading.Event
    sizes: Sequence[int] = (10, 5_000, 1_100_000, 3_000_000)
    stored: dict[str, bytes] = field(default_factory=dict)
    """Id and bytes of every 201."""
    """Id and CID of the same."""
    """CIDs of what was sent although it was there."""
    cut: set[str] = field(default_factory=set)
    """Names of what was not answered."""
    number: int = 0
    tried: int = 0

    def run(self) -> None:
        """In a thread."""
        while not self.stopping.is_set():
            with self.home.client(self.key) as client:
                try:
                    while not self.stopping.is_set():
                        self.one(client)
                except httpx.TransportError:
                    # Killed under us; it is back in a moment.
                    self.stopping.wait(0.05)

    def one(self, client: httpx.Client) -> None:
        """Of any size from a few bytes to several blocks; now and then what is there already."""
        data = os.urandom(random.choice(self.sizes))
        if self.stored and random.random() < 0.2:
            again = random.choice(list(self.stored))
            data = self.stored[again]
        self.tried += 1
        name = f"{self.number}-{self.tried}"
        self.cut.add(name)
        answer = client.put(f"/v1/files?name={name}", content=data)
        self.cut.remove(name)
        if answer.status_code == 201:
            self.stored[answer.json()["id"]] = data


def pins_on_node(home: Home) -> dict[str, str]:
    """CID and name of every recursive pin."""
    settings = Settings(_env_file=None, home=home.path)
    answer = httpx.post(
        f"http://127.0.0.1:{home.rpc_port}/api/v0/pin/ls",
        params={"type": "recursive", "names": "true"},
        headers={"Authorization": str(authorization(rpc_auth_of(settings.home / "ipfs")))},
        verify=NO_TLS,
        trust_env=False,
    )
    return {normalise(cid): pin["Name"] for cid, pin in answer.json()["Keys"].items()}


def names_of_all(own: httpx.Client) -> dict[str, str]:
    """Id and name of every file, page by page."""
    names: dict[str, str] = {}
    cursor: dict[str, str] = {}
    while True:
        page = own.get("/v2/files", params={"limit": 1000, **cursor}).json()
        names |= {item["id"]: item["name"] for item in page["items"]}
        if page["next_cursor"] is None:
            return names
        cursor = {"cursor": page["next_cursor"]}


def check(home: Home, uploaders: Sequence[Uploader], own: httpx.Client) -> None:
    """Everything promised is there and readable, nothing else is recorded, the sums agree."""
    promised = {i: data for uploader in uploaders for i, data in uploader.stored.items()}
    assert promised, "the test has proved nothing: not one upload got through"
    names = names_of_all(own)
    assert promised.keys() <= names.keys()
    # Who was cut off before the answer can't know whether it was recorded.
    others = {names[file_id] for file_id in names.keys() - promised.keys()}
    assert others <= set[str]().union(*(uploader.cut for uploader in uploaders))
    for file_id, data in promised.items():
        assert own.get(f"/v1/files/{file_id}/content").content == data
    settings = Settings(_env_file=None, home=home.path)
    database = Database(settings)
    with database.session_scope(write=False) as session:
        [usage] = session.scalars(select(UserUsage)).all()
        held = sum(holding.bytes for holding in session.scalars(select(Holding)))
        files = session.scalars(select(File)).all()
        contents = dict(session.execute(select(Content.cid, Content.pin_root_id)).all())
        leases = {str(lease) for lease in session.scalars(select(Lease.id))}
        assert usage.storage_bytes == held
        assert usage.reserved_bytes == 0
        assert usage.file_count == len(files) == len(names)
        bundles = {cid for cid in contents if Cid.from_text(cid).codec == DAG_CBOR}
        assert {file.cid for file in files} == contents.keys() - bundles
    database.dispose()
    # Kubo drops the pin of what is sent again before it makes it anew; killed in between it has
    # neither, though every block: the worker pins it again when it is back.
    roots = set(contents.values())
    until(lambda: roots <= pins_on_node(home).keys(), "all that is recorded is pinned", 30)
    pins = pins_on_node(home)
    for cid in pins.keys() - contents.keys() - {EMPTY_FOLDER}:
        name = pins[cid].split("/")
        assert name[0] == "on-api", "an orphan without our name"
        assert name[2] in leases, "an orphan without a lease"


@pytest.mark.parametrize(
    "kills", [3, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
def test_kill_9_at_random_moments(tmp_path: Path, kills: int) -> None:
    """Large files, and many small ones that share pins; one server killed again and again, and now
    and then its node."""
    (tmp_path / "home").mkdir(mode=0o700)
    home = Home(tmp_path / "home", extra={"ON_API_FILES__LEASE_SECONDS": "3600"})
    key = home.init()
    stopping = threading.Event()
    uploaders = [Uploader(home, key, stopping, number=number) for number in range(3)]
    for number in range(3, 11):
        uploaders.append(Uploader(home, key, stopping, sizes=(10, 500, 5_000), number=number))
    threads = [threading.Thread(target=uploader.run, daemon=True) for uploader in uploaders]
    for thread in threads:
        thread.start()
    try:
        for number in range(kills):
            with home.serving() as process:
                # The moment is the thing under test, and must be random.
                time.sleep(random.uniform(0.0, 0.6))
                if number % 5 == 4:
                    os.kill(home.kubo_pid(), signal.SIGKILL)
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
    finally:
        stopping.set()
        for thread in threads:
            thread.join(60)
    with home.serving(), home.client(key) as client:
        check(home, uploaders, client)
        assert client.put("/v1/files?name=after", content=b"after").status_code == 201
