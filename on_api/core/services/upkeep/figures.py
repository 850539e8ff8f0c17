"""Figures of the whole instance for `/metrics`: node, database, disks, queues, what is kept, the
last runs of maintenance.

They are the same in every process, so the process that is asked tells them once for all. Whatever
hangs or is gone, its figures are left out, and one that says so is 0.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

from anyio import CapacityLimiter, to_thread
from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from on_api.core.errors import OnApiError
from on_api.core.ipfs.port import IpfsNode, RepoStat
from on_api.core.logging import log_failure
from on_api.core.metrics import gauge, gauges
from on_api.core.models import (
    Database,
    EgressCounter,
    Import,
    Maintenance,
    User,
    VisibilityChange,
)
from on_api.core.models.database import moment_of
from on_api.core.models.leased_job import LeasedJob
from on_api.core.models.traffic import EVERYBODY, INSTANCE
from on_api.core.services.content.contents import overdue_removals
from on_api.core.services.content.maintenance import BACKUP, CENSUS, FSCK, GARBAGE, SWEEP
from on_api.core.services.pins import jobs as pin_jobs
from on_api.core.services.shared import leased_jobs
from on_api.core.services.shared.leased_jobs import MOST_COUNTED
from on_api.core.services.upkeep.census import COUNTED, MOST_SHOWN
from on_api.core.services.upkeep.looks import Look
from on_api.core.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

FRESH_SECONDS = 10.0
"""Seconds for which figures are told again, however often they are asked for."""
DEADLINE_SECONDS = 2.0
"""Seconds after which a part without an answer counts as gone; Prometheus waits ten for all."""
RUNS = (GARBAGE, FSCK, SWEEP, BACKUP)
"""Kinds of maintenance whose last run is told."""
FAILURES = frozenset({"failed", "postponed", "unsafe", "troubles", "damaged"})
"""Outcomes of maintenance that did not do what it is for."""
OUTCOME_LENGTH = 32


@dataclass(frozen=True, slots=True)
class _Queue:
    """Jobs of one kind, and the seconds for which the first that nobody works on has been due."""

    jobs: int
    overdue: float


@dataclass(frozen=True, slots=True)
class _Space:
    """A disk, in bytes."""

    free: int
    size: int


@dataclass(frozen=True, slots=True)
class _Run:
    """The last run of a kind of maintenance, as its row tells it."""

    finished_at: float
    result: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class _Rows:
    """Figures out of the database, but for those that are counted."""

    queues: Mapping[str, _Queue]
    runs: Mapping[str, _Run]
    instance_spent: int


class InstanceFigures:
    """The figures, read when they are asked for, at most every `FRESH_SECONDS`. On one event
    loop."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        node: IpfsNode,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._database = database
        self._node = node
        self._threads = CapacityLimiter(2)
        self._disks = {"home": settings.home}
        if database.file is not None:
            self._disks["database"] = database.file.parent
        fresh, deadline = FRESH_SECONDS, DEADLINE_SECONDS
        self._repo = Look(self._ask_node, fresh=fresh, deadline=deadline, clock=clock)
        self._rows = Look(self._ask_database, fresh=fresh, deadline=deadline, clock=clock)
        self._spaces = Look(self._ask_disks, fresh=fresh, deadline=deadline, clock=clock)

    async def read(self) -> Sequence[Metric]:
        """Return all figures that can be had, within `DEADLINE_SECONDS`."""
        repo, rows, spaces = await asyncio.gather(
            self._repo.answer(), self._rows.answer(), self._spaces.answer()
        )
        node: RepoStat | Literal[False] | None = repo
        if repo is None and rows is not None:
            # Else it is not known: an operator's node is only asked after the database has told
            # which it is.
            node = False
        return [*_of_node(node), *_of_disks(spaces or {}), *_of_rows(rows, self._settings)]

    async def close(self) -> None:
        """Cancel what is being asked."""
        for look in (self._repo, self._rows, self._spaces):
            await look.close()

    async def _ask_node(self) -> RepoStat | None:
        try:
            return await self._node.repo_stat()
        except OnApiError:
            return None

    async def _ask_database(self) -> _Rows | None:
        try:
            return await self._in_thread(self._read_rows)
        except OnApiError:  # the session has logged it
            return None
        except Exception as error:  # a missing table, say: no 500
            log_failure(logger, "the figures could not be read", error)
            return None

    async def _ask_disks(self) -> Mapping[str, _Space]:
        return await self._in_thread(self._read_disks)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await to_thread.run_sync(work, limiter=self._threads, abandon_on_cancel=True)

    def _read_disks(self) -> Mapping[str, _Space]:
        found = {}
        for name, folder in self._disks.items():
            with suppress(OSError):
                usage = shutil.disk_usage(folder)
                found[name] = _Space(usage.free, usage.total)
        return found

    def _read_rows(self) -> _Rows:
        grace = timedelta(seconds=self._settings.gc.grace)
        with self._database.session_scope(write=False) as session:
            now = moment_of(session)
            runs = session.scalars(select(Maintenance).where(Maintenance.finished_at.is_not(None)))
            account = (INSTANCE, EVERYBODY, now.strftime("%Y-%m"))
            counter = session.get(EgressCounter, account)
            return _Rows(
                queues={
                    "pin": _pins(session, fetch=False),
                    "fetch": _pins(session, fetch=True),
                    "import": _jobs(session, Import, Import.due_at.is_not(None)),
                    "visibility": _jobs(session, VisibilityChange),
                    "unpin": _Queue(*overdue_removals(session, grace, MOST_COUNTED)),
                    "account": _accounts(session, now),
                },
                runs={
                    row.kind: _Run(row.finished_at.timestamp(), row.result)
                    for row in runs
                    if row.finished_at is not None
                },
                instance_spent=0 if counter is None else counter.bytes,
            )


def _pins(session: Session, *, fetch: bool) -> _Queue:
    due_in = pin_jobs.next_due(session, fetch=fetch)
    return _Queue(pin_jobs.queue_length(session, fetch=fetch), _overdue(due_in))


def _jobs(session: Session, model: type[LeasedJob], *conditions: ColumnElement[bool]) -> _Queue:
    due_in = leased_jobs.next_due(session, model, *conditions)
    return _Queue(leased_jobs.queue_length(session, model, *conditions), _overdue(due_in))


def _accounts(session: Session, now: datetime) -> _Queue:
    """Return the queue of deleted accounts whose removal is not complete."""
    deleted = select(User.deleted_at).where(User.deleted_at.is_not(None)).order_by(User.deleted_at)
    found = session.scalars(deleted.limit(MOST_COUNTED)).all()
    since = found[0] if found else None
    return _Queue(len(found), 0.0 if since is None else (now - since).total_seconds())


def _overdue(due_in: float | None) -> float:
    return 0.0 if due_in is None else max(0.0, -due_in)


def _of_node(repo: RepoStat | Literal[False] | None) -> Iterator[Metric]:
    """Yield figures of the node: False if it does not answer, None if that is not known."""
    is_up = None if repo is None else float(bool(repo))
    yield gauge("on_api_node_up", "1 if the IPFS node answers.", is_up)
    size, limit = (repo.size, repo.storage_max) if repo else (None, None)
    yield gauge("on_api_node_repo_bytes", "Bytes of the node's repo.", size)
    yield gauge("on_api_node_repo_limit_bytes", "Bytes that the repo may have.", limit)


def _of_disks(spaces: Mapping[str, _Space]) -> Iterator[Metric]:
    free = {name: space.free for name, space in spaces.items()}
    size = {name: space.size for name, space in spaces.items()}
    words = "of the disk below a folder: the home, or that of SQLite's file."
    yield gauges("on_api_disk_free_bytes", f"Free bytes {words}", "folder", free)
    yield gauges("on_api_disk_size_bytes", f"All bytes {words}", "folder", size)


def _of_rows(rows: _Rows | None, settings: Settings) -> Iterator[Metric]:
    yield gauge("on_api_database_up", "1 if the database answers.", float(rows is not None))
    yield gauge(
        "on_api_gc_interval_seconds",
        "Seconds between garbage collections, as set; 0: never.",
        settings.gc.interval,
    )
    if rows is None:
        return
    yield gauges(
        "on_api_queue_jobs",
        f"Jobs that wait or are worked on, by kind; counted up to {MOST_COUNTED}.",
        "kind",
        {kind: queue.jobs for kind, queue in rows.queues.items()},
    )
    yield gauges(
        "on_api_queue_oldest_due_seconds",
        "Time for which the first job that nobody works on has been due, by kind.",
        "kind",
        {kind: queue.overdue for kind, queue in rows.queues.items()},
    )
    budget = settings.traffic.instance_budget
    yield gauge(
        "on_api_instance_budget_used_ratio",
        "Part of the instance's budget that this month has used.",
        rows.instance_spent / budget if budget else None,
    )
    yield from _of_runs({kind: run for kind, run in rows.runs.items() if kind in RUNS})
    if (census := rows.runs.get(CENSUS)) is not None:
        yield from _of_census(census)


def _of_runs(runs: Mapping[str, _Run]) -> Iterator[Metric]:
    yield gauges(
        "on_api_maintenance_last_run_timestamp_seconds",
        "When the last run ended, by kind; before the first one: when its schedule began.",
        "kind",
        {kind: run.finished_at for kind, run in runs.items()},
    )
    ended = {kind: run.result for kind, run in runs.items() if run.result is not None}
    outcomes = {kind: str(result.get("outcome", "ended")) for kind, result in ended.items()}
    yield gauges(
        "on_api_maintenance_succeeded",
        "1 if the last run did what it is for, by kind.",
        "kind",
        {kind: float(outcome not in FAILURES) for kind, outcome in outcomes.items()},
    )
    outcome_of = GaugeMetricFamily(
        "on_api_maintenance_outcome",
        "1 for the outcome of the last run, by kind.",
        labels=["kind", "outcome"],
    )
    for kind, outcome in outcomes.items():
        outcome_of.add_metric([kind, outcome[:OUTCOME_LENGTH]], 1.0)
    yield outcome_of
    troubles = ended.get(FSCK, {}).get("troubles")
    yield gauge(
        "on_api_fsck_troubles", "Findings of the last check that were not mended.", troubles
    )


def _of_census(census: _Run) -> Iterator[Metric]:
    counted = census.result or {}
    yield gauge(
        "on_api_census_timestamp_seconds",
        "When contents, pins, files, users and shares of quotas were counted.",
        census.finished_at,
    )
    if counted.get("outcome") != COUNTED:
        return
    yield gauges("on_api_contents", "Contents, by state.", "state", counted["contents"])
    yield gauges("on_api_pins", "Pins of users, by status.", "status", counted["pins"])
    yield gauge("on_api_files", "Files.", counted["files"])
    yield gauge("on_api_users", "Users.", counted["users"])
    yield gauge("on_api_stored_bytes", "Bytes that users are charged for.", counted["stored_bytes"])
    words = f"by the users (their ids) with the {MOST_SHOWN} largest parts."
    yield gauges(
        "on_api_user_quota_used_ratio",
        f"Part of a storage quota that is used or reserved, {words}",
        "user",
        dict(counted["quotas"]),
    )
    yield gauges(
        "on_api_user_budget_used_ratio",
        f"Part of a month's budget for traffic that is used, {words}",
        "user",
        dict(counted["budgets"]),
    )
