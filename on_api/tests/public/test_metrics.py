"""Figures of the whole instance in `/metrics`: true, cheap, and absent when what they tell of is
gone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy import update

from on_api.core.models import Database, Maintenance
from on_api.core.models.database import database_now
from on_api.core.services.content.maintenance import CENSUS, FSCK, GARBAGE, Turn, last_outcome
from on_api.core.services.upkeep.census import take_census_when_due
from on_api.core.setting_groups import (
    GcSettings,
    IpfsSettings,
    TrafficSettings,
    WorkerSettings,
)
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker, Server, free_port
from on_api.tests.testing.deadline import until
from on_api.tests.worker.conftest import account_of, new_cid, pin

MakeSettings = Callable[..., Settings]
IDLE = {"worker": WorkerSettings(embedded=False), "gc": GcSettings(grace=0, interval=0)}


class Samples:
    """What one scrape has found."""

    def __init__(self, client: httpx.Client) -> None:
        answer = client.get("/metrics")
        assert answer.status_code == 200
        self.text = answer.text
        self._found = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        """Return a sample's value; None if there is no such sample."""
        return self._found.get((name, frozenset(labels.items())))


def scrape(server: Server) -> Samples:
    """What Prometheus sees."""
    with server.client() as client:
        return Samples(client)


def count_now(database: Database) -> None:
    """Take the census, as if the last one were old."""
    with database.session_scope() as session:
        old = database_now(-timedelta(days=1))
        session.execute(
            update(Maintenance).where(Maintenance.kind == CENSUS).values(finished_at=old)
        )
    assert take_census_when_due(database)


@pytest.fixture
def idle(new_database: DatabaseMaker, settings_for: MakeSettings) -> Server:
    """A server without a worker, on each kind of database, that has not been started."""
    budget = TrafficSettings(instance_budget=1000)
    return Server(settings_for(new_database(), traffic=budget, **IDLE))


def counted_once(server: Server) -> None:
    """Wait for the census that each start takes."""

    def is_done() -> bool:
        with server.services.database.session_scope(write=False) as session:
            return last_outcome(session, CENSUS).result is not None

    until(is_done, "the first census")


def test_what_is_kept(idle: Server) -> None:
    """Contents, pins, files, users and bytes, counted by the housekeeper; who has used most of a
    quota is named by an id, not by a name."""
    with idle as server, account_of(server) as ada, account_of(server, admin=True) as root:
        counted_once(server)
        ada.upload(b"x" * 600, "one")
        ada.upload(b"y" * 200, "two")
        pin(ada, new_cid())
        limits = {"storage_quota": 1000, "egress_budget": 100}
        assert root.client.patch(f"/v1/users/{ada.id}", json=limits).status_code == 200
        root.client.patch(f"/v1/users/{root.id}", json={"storage_quota": 0})
        count_now(server.services.database)
        seen = scrape(server)
        assert seen("on_api_contents", state="pinned") == 2
        assert seen("on_api_pins", status="queued") == 1
        assert seen("on_api_files") == 2
        assert seen("on_api_users") == 2
        stored = ada.client.get("/v1/users/me/usage").json()["storage"]["bytes"]
        assert seen("on_api_stored_bytes") == stored
        assert seen("on_api_user_quota_used_ratio", user=ada.id) == stored / 1000
        assert seen("on_api_user_quota_used_ratio", user=root.id) is None  # 0 can't be used up
        assert ada.username not in seen.text
        age = time.time() - (seen("on_api_census_timestamp_seconds") or 0)
        assert -5 < age < 60


def test_budgets(idle: Server) -> None:
    """Of a user, and of the instance."""
    with idle as server, account_of(server) as ada, account_of(server, admin=True) as root:
        counted_once(server)
        file = ada.upload(b"x" * 400, "one")
        changed = root.client.patch(f"/v1/users/{ada.id}", json={"egress_budget": 800})
        assert changed.status_code == 200
        assert ada.client.get(f"/v1/files/{file['id']}/content").status_code == 200

        def is_settled() -> bool:
            egress = ada.client.get("/v1/users/me/usage").json()["egress"]
            return bool(egress["bytes"] == 400 and not egress["reserved"])

        until(is_settled, "the credit is given back")
        count_now(server.services.database)
        seen = scrape(server)
        assert seen("on_api_user_budget_used_ratio", user=ada.id) == 0.5
        assert seen("on_api_instance_budget_used_ratio") == 0.4


def test_what_waits(idle: Server) -> None:
    """Jobs by kind, and for how long the first has been due: without a worker, for ever."""
    with idle as server, account_of(server) as ada:
        pin(ada, new_cid())
        pin(ada, new_cid())
        file = ada.upload(b"soon gone", "one")
        assert ada.client.delete(f"/v1/files/{file['id']}").status_code == 204
        seen = scrape(server)
        assert seen("on_api_queue_jobs", kind="pin") == 2
        assert seen("on_api_queue_jobs", kind="fetch") == 0
        assert seen("on_api_queue_jobs", kind="unpin") == 1
        assert 0 < (seen("on_api_queue_oldest_due_seconds", kind="pin") or 0) < 60
        assert 0 <= (seen("on_api_queue_oldest_due_seconds", kind="unpin") or 0) < 60
        for kind in ("import", "visibility", "account"):
            assert seen("on_api_queue_jobs", kind=kind) == 0
            assert seen("on_api_queue_oldest_due_seconds", kind=kind) == 0


def test_the_last_runs_of_maintenance(idle: Server) -> None:
    """When, how it ended, and what fsck has found."""
    with idle as server:
        Turn(server.services.database, GARBAGE).end({"outcome": "postponed"})
        Turn(server.services.database, FSCK).end({"outcome": "troubles", "troubles": 3})
        seen = scrape(server)
        for kind, outcome in ((GARBAGE, "postponed"), (FSCK, "troubles")):
            ended = seen("on_api_maintenance_last_run_timestamp_seconds", kind=kind) or 0
            assert -5 < time.time() - ended < 60
            assert seen("on_api_maintenance_succeeded", kind=kind) == 0
            assert seen("on_api_maintenance_outcome", kind=kind, outcome=outcome) == 1
        assert seen("on_api_fsck_troubles") == 3
        assert seen("on_api_maintenance_succeeded", kind="backup") is None


def test_a_run_that_did_its_work(idle: Server) -> None:
    """Its success, by kind."""
    with idle as server:
        Turn(server.services.database, GARBAGE).end({"outcome": "collected"})
        Turn(server.services.database, FSCK).end({"outcome": "clean", "troubles": 0})
        seen = scrape(server)
        assert seen("on_api_maintenance_succeeded", kind=GARBAGE) == 1
        assert seen("on_api_maintenance_succeeded", kind=FSCK) == 1
        assert seen("on_api_fsck_troubles") == 0


def test_node_disk_and_process(idle: Server) -> None:
    """Sizes in bytes, and no twin of a counter that tells when it was made."""
    with idle as server:
        server.new_user()
        seen = scrape(server)
        assert seen("on_api_node_up") == 1
        assert seen("on_api_database_up") == 1
        size, limit = seen("on_api_node_repo_bytes"), seen("on_api_node_repo_limit_bytes")
        assert 0 < (size or 0) < (limit or 0)
        free = seen("on_api_disk_free_bytes", folder="home")
        assert 0 < (free or 0) <= (seen("on_api_disk_size_bytes", folder="home") or 0)
        assert "_created" not in seen.text
        if sys.platform == "linux":
            assert (seen("process_resident_memory_bytes") or 0) > 10_000_000
            assert (seen("process_open_fds") or 0) > 3
            assert (seen("process_cpu_seconds_total") or 0) > 0
            assert (seen("process_start_time_seconds") or 0) < time.time()


def test_a_node_that_is_gone(sqlite_database: DatabaseMaker, settings_for: MakeSettings) -> None:
    """It is 0, its sizes are not told, and all else is."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    gone = IpfsSettings(rpc_url=nowhere, gateway_url=nowhere, rpc_auth=SecretStr("bearer:x"))
    with Server(settings_for(sqlite_database(), **{**IDLE, "ipfs": gone})) as server:
        seen = scrape(server)
        assert seen("on_api_node_up") == 0
        assert seen("on_api_node_repo_bytes") is None
        assert seen("on_api_database_up") == 1
        assert seen("on_api_queue_jobs", kind="pin") == 0


def test_figures_are_not_read_at_each_scrape(idle: Server) -> None:
    """However often they are asked for."""
    with idle as server:
        scrape(server)
        calls = server.count("on_api_node_calls_total", call="repo_stat")
        for _ in range(20):
            scrape(server)
        assert server.count("on_api_node_calls_total", call="repo_stat") <= calls + 1


def test_a_census_rests(idle: Server) -> None:
    """It is not taken again before its time, by whatever process."""
    with idle as server:
        counted_once(server)
        assert not take_census_when_due(server.services.database)
        count_now(server.services.database)
        assert not take_census_when_due(server.services.database)
