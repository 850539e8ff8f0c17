"""Reports of traffic: sums by period, and by party and content.

A killed process can't report how its open credit was used: until `upkeep.py` records it, reports
read it from the credits themselves, as kind `unattributed`.

Reports on the whole instance are read from the totals, unless they are grouped by party or content.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    Subquery,
    case,
    cast,
    func,
    literal,
    null,
    select,
    type_coerce,
    union_all,
)
from sqlalchemy.orm import Session

from on_api.core.models import EgressCredit, MeteringProcess, Traffic, TrafficTotal
from on_api.core.models.database import UTCDateTime, moment_of, utc_now
from on_api.core.models.traffic import INSTANCE, OWNER
from on_api.core.services.traffic.metering import month_end
from on_api.core.services.traffic.sums import COUNTS, Kind
from on_api.core.setting_groups import TrafficSettings

LEAST_SILENCE = timedelta(seconds=10)
"""Least silence, and at least three flushes, after which a process counts as dead."""

_COLUMNS = ("period", "kind", "owner_id", "key_id", "share_id", "file_id", "cid", *COUNTS)
_TOTAL_COLUMNS = ("period", "kind", *COUNTS)
_SQLITE_FORMATS = {
    "hour": "%Y-%m-%d %H:00:00.000000",
    "day": "%Y-%m-%d 00:00:00.000000",
    "month": "%Y-%m-01 00:00:00.000000",
}


class Interval(StrEnum):
    """The length of a report's periods."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class GroupBy(StrEnum):
    """Dimension by which a report is grouped."""

    FILE = "file"
    CID = "cid"
    KEY = "key"
    SHARE = "share"
    USER = "user"
    KIND = "kind"


class SortBy(StrEnum):
    """Order of a report: the earliest period first, or the most bytes out."""

    PERIOD = "period"
    BYTES_OUT = "bytes_out"


_GROUP_COLUMNS = {
    GroupBy.FILE: "file_id",
    GroupBy.CID: "cid",
    GroupBy.KEY: "key_id",
    GroupBy.SHARE: "share_id",
    GroupBy.USER: "owner_id",
    GroupBy.KIND: "kind",
}

_REACH = {
    Interval.HOUR: timedelta(days=2),
    Interval.DAY: timedelta(days=31),
    Interval.MONTH: timedelta(days=366),
}
"""Time that a report goes back when `begin` isn't given."""

_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """Selection of sums. `owner_id` None: all users'. Periods that begin within [`begin`, `end`)
    are counted; None: the interval's usual reach, until now."""

    owner_id: uuid.UUID | None
    interval: Interval
    group_by: GroupBy | None
    begin: datetime | None
    end: datetime | None
    sort: SortBy | None
    limit: int


@dataclass(frozen=True, slots=True)
class ReportLine:
    """Sums of one period and group. `counts` are by the names in `COUNTS`."""

    period: datetime
    group: uuid.UUID | str | None
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class ReportTable:
    """Requested lines, and the sums of all, including those cut off by the limit."""

    lines: Sequence[ReportLine]
    total: dict[str, int]
    truncated: bool


def make_report(session: Session, request: ReportRequest, settings: TrafficSettings) -> ReportTable:
    """Make a report. Counts of the last seconds that processes have not written yet are missing."""
    end = max(request.end or utc_now(), _EARLIEST + _REACH[request.interval])
    begin = _floor(
        max(request.begin or end - _REACH[request.interval], _EARLIEST), request.interval
    )
    dead = _dead(session, moment_of(session) - silence(settings))
    seen, period = _seen(session, request, dead, begin, end, request.group_by)
    groups: list[ColumnElement[Any]] = [period]
    if request.group_by is not None:
        groups.append(seen.c[_GROUP_COLUMNS[request.group_by]])
    sums = _sums(seen)

    most = sums[COUNTS.index("bytes_out")].desc()
    default = SortBy.PERIOD if request.group_by is None else SortBy.BYTES_OUT
    first = [groups[0], most] if (request.sort or default) is SortBy.PERIOD else [most, groups[0]]
    rows = session.execute(
        select(*groups, *sums)
        .group_by(*groups)
        .order_by(*first, *groups[1:])
        .limit(request.limit + 1)
    ).all()
    lines = [
        ReportLine(row[0], row[1] if len(groups) > 1 else None, _counts(row[len(groups) :]))
        for row in rows[: request.limit]
    ]
    everything, _ = _seen(session, request, dead, begin, end, None)
    total = _counts(session.execute(select(*_sums(everything))).one())
    return ReportTable(lines, total, truncated=len(rows) > request.limit)


def silence(settings: TrafficSettings) -> timedelta:
    """Return the time without a sign of life after which a process's open credit is shown as
    `unattributed`."""
    return max(LEAST_SILENCE, 3 * timedelta(seconds=settings.flush_interval))


def last_moment(seen_at: datetime, month: str) -> datetime:
    """Return the hour in which a process was last seen, within the month of its credit."""
    begin = datetime.fromisoformat(f"{month}-01").replace(tzinfo=UTC)
    latest = max(begin, min(seen_at, month_end(begin) - timedelta(hours=1)))
    return _floor(latest, Interval.HOUR)


@dataclass(frozen=True, slots=True)
class _Dead:
    """Credit that a dead process has left open in a month; `beyond`: bytes that no owner accounts
    for."""

    process_id: uuid.UUID
    period: datetime
    month: str
    beyond: int


def _dead(session: Session, silent_since: datetime) -> Sequence[_Dead]:
    month, subject_kind = EgressCredit.month, EgressCredit.subject_kind
    of_owners = func.sum(case((subject_kind == OWNER, EgressCredit.bytes), else_=0))
    of_all = func.sum(case((subject_kind == INSTANCE, EgressCredit.bytes), else_=0))
    found = session.execute(
        select(MeteringProcess.id, MeteringProcess.seen_at, month, of_all - of_owners)
        .join(EgressCredit, EgressCredit.process_id == MeteringProcess.id)
        .where(MeteringProcess.seen_at < silent_since)
        .group_by(MeteringProcess.id, MeteringProcess.seen_at, month)
    )
    return [
        _Dead(process_id, last_moment(seen_at, of_month), of_month, int(beyond))
        for process_id, seen_at, of_month, beyond in found
    ]


def _seen(
    session: Session,
    request: ReportRequest,
    dead: Sequence[_Dead],
    begin: datetime,
    end: datetime,
    group_by: GroupBy | None,
) -> tuple[Subquery, ColumnElement[datetime]]:
    """Build the subquery of the selected rows, and return it with its column of truncated periods:
    not all databases recognise two truncations as equal."""
    is_total = request.owner_id is None and group_by in {None, GroupBy.KIND}
    source = _source(dead, request.owner_id, is_total=is_total)
    wanted = [source.c.period >= begin, source.c.period < end]
    if request.owner_id is not None:
        wanted.append(source.c.owner_id == request.owner_id)
    period = _truncated(session, source.c.period, request.interval).label("truncated")
    seen = select(period, *source.c).where(*wanted).subquery()
    return seen, seen.c.truncated


def _sums(seen: Subquery) -> list[ColumnElement[int]]:
    return [cast(func.coalesce(func.sum(seen.c[name]), 0), BigInteger) for name in COUNTS]


def _source(
    dead: Sequence[_Dead], owner_id: uuid.UUID | None, *, is_total: bool
) -> Subquery | FromClause:
    """Return the recorded rows together with the open credit of dead processes."""
    table = TrafficTotal.__table__ if is_total else Traffic.__table__
    names = _TOTAL_COLUMNS if is_total else _COLUMNS
    parts: list[Select[Any]] = [select(*[table.c[name] for name in names])]
    for each in dead:
        parts.append(
            _unattributed(names, each.period, EgressCredit.subject_id, EgressCredit.bytes).where(
                EgressCredit.process_id == each.process_id,
                EgressCredit.month == each.month,
                EgressCredit.subject_kind == OWNER,
            )
        )
        if owner_id is None and each.beyond > 0:
            parts.append(_unattributed(names, each.period, null(), literal(each.beyond)))
    return union_all(*parts).subquery() if len(parts) > 1 else table


def _unattributed(
    names: Sequence[str],
    period: datetime,
    owner: ColumnElement[Any] | Any,
    size: ColumnElement[int] | Any,
) -> Select[Any]:
    values: dict[str, Any] = {
        "period": literal(period, UTCDateTime()),
        "kind": literal(Kind.UNATTRIBUTED.value),
        "owner_id": owner,
        "bytes_out": size,
    }
    types = Traffic.__table__.c
    columns = []
    for name in names:
        value = values.get(name, literal(0) if name in COUNTS else null())
        columns.append(cast(value, types[name].type) if value is null() else value)
    return select(*columns)


def _truncated(
    session: Session, period: ColumnElement[datetime], interval: Interval
) -> ColumnElement[datetime]:
    if session.get_bind().dialect.name == "postgresql":
        return func.date_trunc(interval.value, period, "UTC")
    return type_coerce(func.strftime(_SQLITE_FORMATS[interval], period), UTCDateTime())


def _floor(moment: datetime, interval: Interval) -> datetime:
    hour = moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if interval is Interval.HOUR:
        return hour
    return hour.replace(hour=0) if interval is Interval.DAY else hour.replace(hour=0, day=1)


def _counts(values: Sequence[Any]) -> dict[str, int]:
    return {name: int(value) for name, value in zip(COUNTS, values, strict=True)}
