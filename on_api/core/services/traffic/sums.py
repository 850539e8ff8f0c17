"""Charges that bytes are counted for, and the rows with the sums. Budgets are enforced in
`egress.py`; nothing here looks at them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from on_api.core.models import Traffic, TrafficTotal
from on_api.core.models.database import table_of
from on_api.core.models.traffic import HOUR
from on_api.core.services.content.statements import ManyRows

COUNTS = ("requests", "unchanged", "failed", "bytes_out", "bytes_in")
"""Columns that are summed."""


class Kind(StrEnum):
    """Kind of traffic: the route by which bytes were sent or received."""

    GATEWAY = "gateway"
    CONTENT = "content"
    SHARE = "share"
    EXPORT = "export"
    UPLOAD = "upload"
    UNATTRIBUTED = "unattributed"
    """Open credit of a killed process: perhaps sent, purpose unknown."""


@dataclass(frozen=True, slots=True)
class Charge:
    """Party and content that an answer's bytes are counted for. `cid` is the root."""

    kind: Kind
    owner_id: uuid.UUID | None
    """Owner; None: the instance alone."""
    key_id: uuid.UUID | None = None
    share_id: uuid.UUID | None = None
    file_id: uuid.UUID | None = None
    cid: str | None = None


@dataclass(slots=True)
class Sums:
    """Counts of one charge in the period that begins at `period`."""

    period: datetime
    charge: Charge
    requests: int = 0
    unchanged: int = 0
    failed: int = 0
    bytes_out: int = 0
    bytes_in: int = 0


def add_traffic(session: Session, counted: Iterable[Sums], granularity: str = HOUR) -> None:
    """Add to the sums of periods; those of hours are added to the totals of the instance as well.
    Rows are locked in the order of their ids, then totals in theirs, so that two writers can't
    deadlock."""
    rows: dict[bytes, dict[str, Any]] = {}
    totals: dict[tuple[datetime, str], dict[str, Any]] = {}
    for one in counted:
        if granularity == HOUR:
            _add_total(totals, one)
        row = _row(one, granularity)
        if (same := rows.setdefault(row["id"], row)) is not row:
            for name in COUNTS:
                same[name] += row[name]
    _write(session, _TRAFFIC, [rows[row_id] for row_id in sorted(rows)])
    _write(session, _TOTALS, [totals[place] for place in sorted(totals)])


def take_back(
    session: Session, sizes: Mapping[tuple[datetime, Charge], int]
) -> list[tuple[datetime, Charge]]:
    """Lower the bytes sent in hours by `sizes` (raise them for negative ones). Returns the hours
    and charges where that was done: a row that has counted less is left alone."""
    done = []
    totals: dict[tuple[datetime, str], int] = {}
    by_id = {_row(Sums(*place), HOUR)["id"]: place for place in sizes}
    for row_id, place in sorted(by_id.items()):
        enough = (Traffic.id == row_id) & (Traffic.bytes_out >= sizes[place])
        lowered = update(Traffic).where(enough).values(bytes_out=Traffic.bytes_out - sizes[place])
        if session.execute(lowered.returning(Traffic.id)).first() is not None:
            done.append(place)
            period, charge = place
            total = (period, charge.kind.value)
            totals[total] = totals.get(total, 0) + sizes[place]
    for (period, kind), size in sorted(totals.items()):
        session.execute(
            update(TrafficTotal)
            .where(TrafficTotal.period == period, TrafficTotal.kind == kind)
            .values(bytes_out=TrafficTotal.bytes_out - size)
        )
    return done


def _add_total(totals: dict[tuple[datetime, str], dict[str, Any]], one: Sums) -> None:
    kind = one.charge.kind.value
    counts = {name: getattr(one, name) for name in COUNTS}
    new = {"period": one.period, "kind": kind, **counts}
    if (same := totals.setdefault((one.period, kind), new)) is not new:
        for name in COUNTS:
            same[name] += counts[name]


def _adding(table: type[Traffic] | type[TrafficTotal], unique: str) -> ManyRows:
    """Build the statement that inserts rows, or adds to the counts of existing ones."""
    name = table.__tablename__
    sums = ", ".join(f"{count} = {name}.{count} + excluded.{count}" for count in COUNTS)
    columns = [column.key for column in table_of(table).columns]
    return ManyRows(table, columns, f"ON CONFLICT ({unique}) DO UPDATE SET {sums}")


_TRAFFIC = _adding(Traffic, "id")
_TOTALS = _adding(TrafficTotal, "period, kind")
_ROWS_AT_ONCE = 500
"""Rows in one statement: SQLite allows 32,766 parameters."""


def _write(session: Session, statement: ManyRows, rows: Sequence[Mapping[str, Any]]) -> None:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        values = [[row[name] for name in statement.columns] for row in part]
        statement.execute(session.connection(), values)


def _row(one: Sums, granularity: str) -> dict[str, Any]:
    charge = one.charge
    who_and_what = {
        "granularity": granularity,
        "period": one.period,
        "kind": charge.kind.value,
        "owner_id": charge.owner_id,
        "key_id": charge.key_id,
        "share_id": charge.share_id,
        "file_id": charge.file_id,
        "cid": charge.cid,
    }
    text = "|".join("" if value is None else str(value) for value in who_and_what.values())
    return {
        "id": hashlib.blake2b(text.encode(), digest_size=16).digest(),
        **who_and_what,
        **{name: getattr(one, name) for name in COUNTS},
    }
