"""Maintenance of the whole node, one run of a kind at a time over all processes: the turn, its
lease, and the result of the last run."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from on_api.core.errors import Conflict, ServiceUnavailable
from on_api.core.models import Database, Maintenance
from on_api.core.models.database import (
    database_now,
    dialect_of,
    insert_unless_there,
    moment_of,
    new_id,
)
from on_api.core.services.shared.renewal import renewed

GARBAGE = "gc"
FSCK = "fsck"
SWEEP = "sweep"
"""Look through the node's pins for those of dead leases."""
CENSUS = "census"
"""Count what is kept; see `upkeep/census.py`."""
BACKUP = "backup"
LIFE = timedelta(seconds=60)
_BEGINNING = 0x6F6E2D617069
"""Number of PostgreSQL's advisory lock: shared by work that begins, exclusive for a collection."""
_APART = {GARBAGE: BACKUP, BACKUP: GARBAGE}
"""Kinds that never run at once: a collection would remove blocks that a backup has still to copy.
Uploads go on beside a backup: it is a kind of its own, which they don't ask for."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of the last run; None in both fields if there was none."""

    finished_at: datetime | None
    result: dict[str, Any] | None


class Turn:
    """This process's turn at one kind of maintenance; expires after `LIFE` unless renewed."""

    def __init__(self, database: Database, kind: str) -> None:
        """Take the turn. Raises `Conflict` while another process has it, or the turn of a kind that
        this one must not overlap with."""
        self._database = database
        self._kind = kind
        self._token = new_id()
        with database.session_scope() as session:
            if kind == GARBAGE and database.is_postgresql:
                # Waits for transactions that have seen no collection and have not committed their
                # work yet.
                session.execute(select(func.pg_advisory_xact_lock(_BEGINNING)))
            # In the order of their names, so that two never wait for each other in a ring.
            kinds = sorted({kind, _APART.get(kind, kind)})
            for each in kinds:
                insert_unless_there(session, Maintenance, kind=each)
            rows = {each: _lock(session, each) for each in kinds}
            row, now = rows[kind], moment_of(session)
            for each, other in rows.items():
                if other.lease_until is not None and other.lease_until > now:
                    raise Conflict(f"A {each} run is already in progress.")
            row.token, row.lease_until, row.started_at = self._token, now + LIFE, now

    def kept(self) -> AbstractAsyncContextManager[None]:
        """Renew the turn while the block runs."""
        return renewed(self.renew, LIFE)

    def end(self, result: dict[str, Any]) -> None:
        """End the turn and record its result; does nothing if the turn was lost."""
        with self._database.session_scope() as session:
            row = _lock(session, self._kind)
            if row.token == self._token:
                row.token = row.lease_until = None
                row.finished_at, row.result = moment_of(session), result

    def renew(self) -> bool:
        """Renew the turn for `LIFE` from now on. Returns False when it was lost. A turn that has
        expired never comes back: work may have begun that must not overlap with it."""
        with self._database.session_scope() as session:
            row, now = _lock(session, self._kind), moment_of(session)
            if row.token != self._token or row.lease_until is None or row.lease_until <= now:
                return False
            row.lease_until = now + LIFE
            return True


def is_under_way(session: Session, kind: str) -> bool:
    """Return whether maintenance of this kind is under way."""
    live = exists().where(Maintenance.kind == kind, Maintenance.lease_until > database_now())
    return bool(session.scalar(select(live)))


def may_begin(session: Session) -> bool:
    """Return whether work may begin that must not overlap with a garbage collection. If so, no
    collection begins before this transaction ends, and it then sees what was written. Call it
    before anything is locked."""
    # On SQLite a transaction that writes is alone. On PostgreSQL neither would see the other's
    # uncommitted row: a separate statement, as the next one must see what was committed before.
    if dialect_of(session) == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock_shared(_BEGINNING)))
    return not is_under_way(session, GARBAGE)


def require_no_collection(session: Session) -> None:
    """Raise `ServiceUnavailable` unless `may_begin`: for callers about to store something."""
    if not may_begin(session):
        raise ServiceUnavailable(
            "Garbage collection is running on the node; try again in a few seconds."
        )


def last_outcome(session: Session, kind: str) -> Outcome:
    """Return the result of the last run. Without a `result` there was no run: `finished_at` is then
    when the schedule began to count."""
    row = session.get(Maintenance, kind)
    return Outcome(None, None) if row is None else Outcome(row.finished_at, row.result)


def start_counting(session: Session, kind: str) -> None:
    """Start the schedule now where no run of this kind has ended."""
    insert_unless_there(session, Maintenance, kind=kind)
    # The row may be there without an end: of a run that was killed, or another kind's look at it.
    row = _lock(session, kind)
    if row.finished_at is None:
        row.finished_at = moment_of(session)


def _lock(session: Session, kind: str) -> Maintenance:
    return session.scalars(
        select(Maintenance)
        .where(Maintenance.kind == kind)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one()
