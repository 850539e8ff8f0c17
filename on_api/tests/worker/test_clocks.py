"""A worker whose machine's clock is hours wrong: it does its work, and no harm to others'."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from on_api.core.models import Lease
from on_api.core.models.database import utc_now
from on_api.core.models.revisions import PROJECT
from on_api.core.services.upkeep.diagnosis import Severity, diagnose
from on_api.core.setting_groups import FilesSettings, WorkerSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.network import Peer
from on_api.tests.worker.conftest import account_of, ended, pin

_WITH_A_WRONG_CLOCK = """
import sys
from datetime import timedelta
from on_api.core.models import database
right, wrong = database.utc_now, timedelta(hours=float(sys.argv[1]))
database.utc_now = lambda: right() + wrong
from on_api.cli.main import run
sys.argv[1:] = ["worker"]
run()
"""


@contextmanager
def wrong_worker(settings: Settings, hours: float) -> Iterator[None]:
    """`on-api worker` on a machine whose clock is so many hours ahead; killed in the end."""
    secret, rpc_auth = settings.secret_key, settings.ipfs.rpc_auth
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("ON_API_")},
        "ON_API_HOME": str(settings.home),
        "ON_API_DATABASE_URL": settings.sqlalchemy_url,
        "ON_API_SECRET_KEY": secret.get_secret_value() if secret else "",
        "ON_API_IPFS__RPC_URL": settings.rpc_url,
        "ON_API_IPFS__GATEWAY_URL": settings.gateway_url,
        "ON_API_IPFS__RPC_AUTH": rpc_auth.get_secret_value() if rpc_auth else "",
        "ON_API_WORKER__POLL": "0.1",
        "ON_API_GC__INTERVAL": "0",
    }
    log = Path(settings.home) / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _WITH_A_WRONG_CLOCK, str(hours)],
            env=environment,
            cwd=PROJECT,
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: b"the worker is running" in log.read_bytes(), "the worker is running", 300)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("hours", [3, -3], ids=["ahead", "behind"])
def test_a_worker_whose_clock_is_wrong(
    here: Peer,
    settings_for: Callable[..., Settings],
    new_database: DatabaseMaker,
    hours: float,
) -> None:
    """An upload under way keeps its lease, what was just deleted its time of grace; jobs are done
    when they are due, and what is really dead is removed."""
    settings = settings_for(
        new_database(),
        ipfs=here.ipfs,
        files=FilesSettings(lease_seconds=60),
        worker=WorkerSettings(embedded=False),
    )
    going_on = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield os.urandom(1024 * 1024)
        while not going_on.wait(5):
            yield b"more"

    with Server(settings) as server, account_of(server) as ada, ThreadPoolExecutor() as pool:
        database = server.services.database
        deleted = ada.upload(os.urandom(2000))
        assert ada.client.delete(f"/v1/files/{deleted['id']}").status_code == 204
        orphan = here.add(os.urandom(3000), pinned=False)
        dead = Lease(kind="upload", lease_until=utc_now() - timedelta(seconds=1))
        with database.session_scope() as session:
            session.add(dead)
        name = server.services.names.of(dead.id)
        here.rpc("pin/add", {"arg": orphan, "name": name})
        uploading = pool.submit(ada.client.put, "/v1/files?name=slow", content=slowly())
        try:

            def leases() -> set[object]:
                with database.session_scope(write=False) as session:
                    return set(session.scalars(select(Lease.id)))

            until(lambda: len(leases()) == 2, "the upload is under way", 60)
            with wrong_worker(settings, hours):
                wanted = pin(ada, here.add(os.urandom(4000), pinned=False))
                assert ended(ada, wanted, 300)["status"] == "pinned"
                until(lambda: dead.id not in leases(), "the dead lease is ended", 300)
                going_on.set()
                assert uploading.result().status_code == 201
        finally:
            going_on.set()
        assert orphan not in here.pins()
        assert str(deleted["cid"]) in here.pins()


@pytest.mark.parametrize("hours", [0, 1])
def test_doctor_tells_the_difference(
    here: Peer,
    settings_for: Callable[..., Settings],
    new_database: DatabaseMaker,
    monkeypatch: pytest.MonkeyPatch,
    hours: int,
) -> None:
    """Between this machine's clock and the database's."""
    settings = settings_for(new_database(), ipfs=here.ipfs)
    ahead = timedelta(hours=hours)
    monkeypatch.setattr("on_api.core.models.database.utc_now", lambda: utc_now() + ahead)
    [clock] = [finding for finding in diagnose(settings) if finding.name == "clock"]
    if hours:
        assert clock.verdict is Severity.WARNING
        assert "ahead" in clock.details
    else:
        assert clock.verdict is Severity.OK
