"""The meter when things end badly: a process that dies or freezes, a commit without an answer, a
database that is gone."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from on_api.core.errors import DatabaseUnavailable
from on_api.core.models import Database, EgressCredit, MeteringProcess, Traffic
from on_api.core.models.database import utc_now
from on_api.core.models.traffic import DAY, HOUR, MONTH
from on_api.core.server_settings import DatabaseSettings
from on_api.core.services.traffic.metering import Charge, Kind
from on_api.core.services.traffic.reports import GroupBy, Interval, ReportRequest, make_report
from on_api.core.services.traffic.sums import Sums, add_traffic
from on_api.core.services.traffic.upkeep import keep_traffic, merge_some
from on_api.core.setting_groups import MIB, TrafficSettings
from on_api.tests.conftest import DatabaseMaker, make_settings
from on_api.tests.testing.metering import Stage, send, staged
from on_api.tests.testing.tcp_proxy import Mood, TcpProxy, proxied

ALL = ReportRequest(None, Interval.MONTH, GroupBy.KIND, None, None, None, 1000)
SETTINGS = TrafficSettings()


def reported(stage: Stage, owner: uuid.UUID | None = None) -> dict[str, int]:
    """Bytes out by kind, as a report of the last year has them."""
    with stage.database.session_scope(write=False) as session:
        report = make_report(session, replace(ALL, owner_id=owner), SETTINGS)
    by_kind: dict[str, int] = {}
    for line in report.lines:
        kind = str(line.group)
        by_kind[kind] = by_kind.get(kind, 0) + line.counts["bytes_out"]
    assert sum(by_kind.values()) == report.total["bytes_out"]
    return by_kind


def silence_all(stage: Stage, since: timedelta) -> None:
    """As if every process had been silent for so long."""
    with stage.database.session_scope() as session:
        for process in session.query(MeteringProcess):
            process.seen_at = utc_now() - since


@pytest.mark.anyio
async def test_what_a_killed_process_had_open_stays_counted(stage: Stage) -> None:
    """In the counter at once; in reports as `unattributed` soon, for its owner and for what had
    none; and for good after an hour. Done twice, it is there once."""
    stage.now = utc_now()
    owner, month = stage.new_user(), stage.now.strftime("%Y-%m")
    killed = stage.meter()
    await send(await killed.open(Charge(Kind.CONTENT, owner), None), 200_000)
    await killed.flush()
    await send(await killed.open(Charge(Kind.CONTENT, owner), None), 50_000)
    await send(await killed.open(Charge(Kind.GATEWAY, None), None), 900_000)

    assert stage.counter(owner, month) == MIB
    assert reported(stage) == {"content": 200_000}  # it may still be alive
    silence_all(stage, timedelta(seconds=11))
    assert reported(stage, owner) == {"content": 200_000, "unattributed": MIB - 200_000}
    everybody = reported(stage)
    assert everybody["unattributed"] >= MIB - 200_000 + 50_000
    assert sum(everybody.values()) == stage.counter(None, month) >= 200_000 + 50_000 + 900_000

    silence_all(stage, timedelta(hours=1, seconds=1))
    before = reported(stage), reported(stage, owner)
    for _ in range(2):
        keep_traffic(stage.database, SETTINGS)
        assert (reported(stage), reported(stage, owner)) == before
    with stage.database.session_scope(write=False) as session:
        assert session.query(EgressCredit).count() == session.query(MeteringProcess).count() == 0
    assert stage.counter(owner, month) == MIB


@pytest.mark.anyio
async def test_a_process_that_was_only_frozen_counts_on(stage: Stage) -> None:
    """Its open credit was written down for dead and stays so; what it had used of it, and what it
    sends from now on, is counted as if nothing had been."""
    stage.now = utc_now()
    owner, month = stage.new_user(), stage.now.strftime("%Y-%m")
    frozen = stage.meter()
    ticket = await frozen.open(Charge(Kind.CONTENT, owner), None)
    await send(ticket, 300_000)
    silence_all(stage, timedelta(hours=2))
    keep_traffic(stage.database, SETTINGS)
    sent = 300_000
    for size in (500_000, 900_000, 3_000_000):
        await send(ticket, size)
        sent += size
        assert stage.counter(owner, month) >= sent
    ticket.close(200)
    await frozen.close()
    assert reported(stage, owner) == {"unattributed": MIB, "content": sent}
    assert stage.counter(owner, month) == MIB + sent


@pytest.fixture(scope="module")
def proxy_and_stage(
    postgres_database: DatabaseMaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TcpProxy, Stage, Database]]:
    """A stage whose way to PostgreSQL goes through a proxy, and the direct way."""
    home = tmp_path_factory.mktemp("home")
    direct_url = make_url(postgres_database())
    folder = Path(str(direct_url.query["host"]))

    def dial() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(folder / f".s.PGSQL.{direct_url.port or 5432}"))
        return connection

    with proxied(dial) as proxy:
        url = direct_url.set(host="127.0.0.1", port=proxy.port, query={})
        quick = DatabaseSettings(connect_timeout=2, pool_timeout=2, statement_timeout=3)
        settings = make_settings(home, url.render_as_string(hide_password=False), database=quick)
        direct = Database(make_settings(home, direct_url.render_as_string(hide_password=False)))
        with staged(Database(settings)) as stage:
            yield proxy, stage, direct
            proxy.mood = Mood.GOOD
        direct.dispose()


@pytest.mark.anyio
@pytest.mark.parametrize("mood", [Mood.LOSE_COMMITS, Mood.STOP_COMMITS])
async def test_a_commit_without_an_answer_counts_once(
    proxy_and_stage: tuple[TcpProxy, Stage, Database], mood: Mood
) -> None:
    """A flush, and a slice, whether the database has it or not: tried again, it is there once."""
    proxy, stage, direct = proxy_and_stage
    seen = Stage(direct, stage.news)
    owner, meter = seen.new_user(), stage.meter()
    charge = Charge(Kind.CONTENT, owner)
    proxy.mood = mood
    with pytest.raises(DatabaseUnavailable):
        await meter.open(charge, 1000)
    assert seen.counter(owner) == (MIB if mood is Mood.LOSE_COMMITS else 0)
    proxy.mood = Mood.GOOD
    await meter.flush()  # what nobody asks for again comes back
    assert seen.counter(owner) == 0
    proxy.mood = mood
    with pytest.raises(DatabaseUnavailable):
        await meter.open(charge, 1000)
    proxy.mood = Mood.GOOD
    ticket = await meter.open(charge, 1000)
    assert seen.counter(owner) <= 2 * MIB
    await send(ticket, 1000, 2000)
    ticket.close(200)

    proxy.mood = mood
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await meter.flush()
    await send(await meter.open(charge, 0), 4000)  # of the credit that it has
    proxy.mood = Mood.GOOD
    await meter.close()
    mine = [row for row in seen.rows() if row.owner_id == owner]
    assert sum(row.bytes_out for row in mine) == 7000 == seen.counter(owner)
    assert sum(row.requests for row in mine) == 1
    with direct.session_scope(write=False) as session:
        assert session.query(EgressCredit).filter_by(subject_id=owner).count() == 0


@pytest.mark.anyio
async def test_without_a_database_an_answer_waits_and_then_goes_on(
    proxy_and_stage: tuple[TcpProxy, Stage, Database],
) -> None:
    """A short outage cuts nobody; what was sent meanwhile came from credit that was committed."""
    proxy, stage, direct = proxy_and_stage
    seen = Stage(direct, stage.news)
    owner, meter = seen.new_user(), stage.meter()
    ticket = await meter.open(Charge(Kind.CONTENT, owner), None)
    proxy.mood = Mood.REFUSE
    back = threading.Timer(1.0, lambda: setattr(proxy, "mood", Mood.GOOD))
    back.start()
    await send(ticket, *[MIB] * 20)
    back.join()
    assert seen.counter(owner) >= 20 * MIB
    ticket.close(200)
    await meter.close()
    assert seen.counter(owner) == 20 * MIB


def test_merging_old_rows_changes_no_sum(stage: Stage) -> None:
    """Hours into days, days into months: by two at once, in any order, again and again; a report
    taken meanwhile never counts a byte twice, or not at all."""
    owner = stage.new_user()
    begin = utc_now().replace(minute=0, second=0, microsecond=0) - timedelta(days=75)
    with stage.database.session_scope() as session:
        for number in range(600):
            hour = begin + timedelta(hours=3 * number)
            charge = Charge(Kind.CONTENT, owner, file_id=uuid.UUID(int=number % 7))
            add_traffic(session, [Sums(hour, charge, requests=1, bytes_out=1000 + number)])
    before = reported(stage)
    failures: list[object] = []

    def merge(settings: TrafficSettings) -> None:
        try:
            keep_traffic(stage.database, settings)
        except Exception as error:  # told below
            failures.append(error)

    quick = TrafficSettings(hours_kept=20, days_kept=40)
    threads = [threading.Thread(target=merge, args=(quick,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert reported(stage) == before
    merge(quick)
    assert failures == []
    assert reported(stage) == before
    by_granularity = {HOUR: 0, DAY: 0, MONTH: 0}
    for row in stage.rows():
        by_granularity[row.granularity] += row.bytes_out
    assert all(by_granularity.values())
    assert sum(by_granularity.values()) == before["content"]


def test_a_merge_that_is_killed_has_done_nothing(stage: Stage) -> None:
    """It is one transaction."""
    hour = datetime(2026, 1, 1, 5, tzinfo=UTC)
    with stage.database.session_scope() as session:
        add_traffic(session, [Sums(hour, Charge(Kind.SHARE, None), bytes_out=7)])

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    from sqlalchemy import event  # only here

    event.listen(stage.database.engine, "commit", die)
    try:
        with pytest.raises(Killed):
            merge_some(stage.database, HOUR, DAY, utc_now())
    finally:
        event.remove(stage.database.engine, "commit", die)
    (row,) = stage.rows()
    assert (row.granularity, row.period, row.bytes_out) == (HOUR, hour, 7)
    merge_some(stage.database, HOUR, DAY, utc_now())
    (row,) = stage.rows()
    assert isinstance(row, Traffic)
    assert (row.granularity, row.period, row.bytes_out) == (DAY, hour.replace(hour=0), 7)
