"""What grows with the instance: nothing that a request or a job costs, but the work itself.

Every statement of a walk past everything is explained where it runs, on an instance ten times as
large as another one; in `make soak` a hundred times. Compared are rows and pages, never time.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import func, select

from on_api.core.models import Database, File, User
from on_api.core.server_settings import DatabaseSettings
from on_api.core.services.traffic import upkeep as traffic_upkeep
from on_api.core.services.upkeep.fsck.ledger import check_ledger
from on_api.core.setting_groups import WorkerSettings
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.scale.explain import Cost, Recorder, outline
from on_api.tests.scale.seeding import REGULAR, SMALL, Scale, seed
from on_api.tests.scale.tour import Tour

TINY = Scale(files=2_000, users=100, traffic=4_000)
TEN_TIMES = Scale(files=20_000, users=100, traffic=40_000)
MORE, FEW = 3, 400
"""A statement may cost so many times what it costs in the small instance, and so many rows or pages
on top: indexes are a page or two higher, and planners like whole tables while these are small."""

REFERENCES_LOOKED_AT = 1000
"""By the gateway, of one content, and no more: `gateway.OLDEST_REFERENCES`."""
COUNTED = 10_000
"""Of the audit log and the pins' queue, and no more."""

TOLD_APART = ("user", "key", "file", "cid", "share")
"""What is told of everybody by these is a sum over all of their rows in that time, under the time
limit of a statement."""

GROWING = {
    "audit_events", "contents", "egress_counters", "events", "files", "holdings",
    "idempotency_records", "import_items", "imports", "keys", "pins", "shares", "traffic",
    "user_usage", "users", "visibility_changes",
}  # fmt: skip
"""Tables that have a row for each thing that somebody does."""

IN_THE_BACKGROUND = "contents.pin_root_id = contents.cid"
"""The count of pins for administrators, for which no request waits long (`NodeWatch.pinned`)."""


@dataclass
class Walk:
    """A large instance and what was seen in it."""

    costs: Sequence[Cost]
    users: int


def bound_of(cost: Cost, users: int) -> int:
    """Rows that a step may look at whatever the instance's size, because it says so."""
    if cost.step.startswith("gateway, popular"):
        return 3 * REFERENCES_LOOKED_AT + 2 * users
    if cost.step.startswith(("/v1/audit", "pins' queue")):
        return COUNTED
    if cost.step == "traffic's merging":
        return 10 * traffic_upkeep.BATCH_ROWS  # a sort is dearer than an index only beyond that
    if cost.step.startswith("everybody's traffic") and cost.step.endswith(TOLD_APART):
        return 10**9
    if cost.step.startswith(("/v1/users", "/v2/users")):
        return 3 * users  # all of them are counted, and there are as many as people
    return 0


@contextmanager
def seeded(server: Server, scale: Scale) -> Iterator[Account]:
    """An instance of that size; its first user, who has a tenth of it."""
    first = server.new_user()
    with first.client:
        seed(server.settings.sqlalchemy_url.replace("+psycopg2", ""), scale)
        yield first


def walk(server: Server, scale: Scale) -> Walk:
    """Past everything: as everybody, and as a user who has as much in each instance."""
    with seeded(server, scale) as first:
        database = server.services.database
        recorder = Recorder(database.engine)
        with database.session_scope(write=False) as session:
            regular = session.scalars(select(User.id).where(User.username == REGULAR)).one()
            cid = session.scalars(
                select(File.cid).group_by(File.cid).order_by(func.count().desc()).limit(1)
            ).one()
        tour = Tour(server, recorder, cid)
        tour.of_user("regular", regular)
        tour.of_large_lists(uuid.UUID(first.id))
        admin = server.new_user(admin=True)
        with admin.client:
            tour.of_everybody(admin)
    return Walk(recorder.costs, scale.users)


def too_much(small: Walk, large: Walk) -> list[str]:
    """What costs more in the large instance, each with its plan."""
    before: dict[tuple[str, str], Cost] = {}
    for cost in small.costs:
        for key in ((cost.step, cost.statement), ("", cost.statement)):
            if key not in before or before[key].rows + before[key].pages < cost.rows + cost.pages:
                before[key] = cost
    found = {}
    for cost in large.costs:
        if cost.statement.endswith(IN_THE_BACKGROUND):
            continue
        then = before.get((cost.step, cost.statement), before.get(("", cost.statement)))
        rows, pages = (then.rows, then.pages) if then is not None else (0, 0)
        bound = bound_of(cost, large.users)
        # Rows that lay together in the small one may each lie on a page of its own.
        near = max(rows, pages)
        if cost.rows > max(MORE * rows + FEW, bound) or cost.pages > max(MORE * near + FEW, bound):
            found[cost.step, cost.statement] = (
                f"{cost.step}: {rows} -> {cost.rows} rows, {pages} -> {cost.pages} pages\n"
                f"{cost.statement}\n{outline(cost.plan)}"
            )
    return list(found.values())


@contextmanager
def serving(folder: Path, url: str, kubo: Kubo) -> Iterator[Server]:
    """A server without a worker of its own: the tour takes its steps one by one."""
    settings = make_settings(
        folder,
        url,
        ipfs=kubo.ipfs,
        worker=WorkerSettings(embedded=False),
        database=DatabaseSettings(statement_timeout=300),
    )
    with Server(settings) as server:
        yield server


def walk_in(folder: Path, maker: DatabaseMaker, kubo: Kubo, scale: Scale) -> Walk:
    """A walk in a new instance."""
    with serving(folder, maker(), kubo) as server:
        return walk(server, scale)


def test_ten_times_as_much_costs_the_same(
    tmp_path: Path, postgres_database: DatabaseMaker, kubo: Kubo
) -> None:
    """The user's own things are as many, so all that grew is others'."""
    small = walk_in(tmp_path, postgres_database, kubo, TINY)
    large = walk_in(tmp_path, postgres_database, kubo, TEN_TIMES)
    assert len({cost.statement for cost in large.costs}) > 150
    assert not (found := too_much(small, large)), "\n\n".join(found)


def test_what_is_seeded_is_consistent(tmp_path: Path, postgres_database: DatabaseMaker) -> None:
    """What is measured on is what on-api would have made."""
    settings = make_settings(tmp_path, postgres_database())
    database = Database(settings)
    with database.session_scope() as session:
        session.add(User(username="first"))
    seed(settings.sqlalchemy_url.replace("+psycopg2", ""), TINY)
    assert list(check_ledger(database, repair=False)) == []
    database.dispose()


def test_sqlite_goes_through_no_table_that_grows(
    tmp_path: Path, sqlite_database: DatabaseMaker, kubo: Kubo
) -> None:
    """Its planner tells without any rows."""
    with serving(tmp_path, sqlite_database(), kubo) as server:
        recorder = Recorder(server.services.database.engine)
        first, admin = server.new_user(), server.new_user(admin=True)
        with first.client, admin.client:
            cid = str(first.upload(b"anything")["cid"])
            source = {"kind": "cids", "text": cid}
            assert first.client.post("/v1/imports", json={"source": source}).status_code == 202
            tour = Tour(server, recorder, cid)
            tour.of_user("regular", uuid.UUID(first.id))
            tour.of_everybody(admin)
    assert len({cost.statement for cost in recorder.costs}) > 150
    found = {
        f"{cost.step}: {cost.statement}\n{outline(cost.plan)}"
        for cost in recorder.costs
        if cost.read_whole & GROWING
        and not cost.step.startswith(("/v1/users", "/v1/audit"))
        and not cost.statement.endswith(IN_THE_BACKGROUND)
    }
    assert not found, "\n\n".join(sorted(found))


@pytest.mark.soak
def test_a_hundred_times_as_much_costs_the_same(
    tmp_path: Path, postgres_database: DatabaseMaker, kubo: Kubo
) -> None:
    """A million files of a thousand users, ten million rows of traffic."""
    small = walk_in(tmp_path, postgres_database, kubo, SMALL)
    large = walk_in(tmp_path, postgres_database, kubo, Scale())
    assert not (found := too_much(small, large)), "\n\n".join(found)
