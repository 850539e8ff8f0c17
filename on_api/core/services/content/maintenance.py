"""Work over the whole node, one of a kind at a time over all processes: who does it, until when,
and how the last one ended."""

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
"""A look through the node's pins for those of dead leases."""
LIFE = timedelta(seconds=60)
_BEGINNING = 0x6F6E2D617069
"""The number of PostgreSQL's advisory lock that whoever begins shares, and a collection has
alone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the last one ended; None for what never happened."""

    finished_at: datetime | None
    result: dict[str, Any] | None


class Turn:
    """The turn of this process to do one kind of maintenance; lost after `LIFE` unless kept."""

    def __init__(self, database: Database, kind: str) -> None:
        """Take it. Raises `Conflict` while somebody else has it."""
        self._database = database
        self._kind = kind
        self._token = new_id()
        with database.session_scope() as session:
            if kind == GARBAGE and database.is_postgresql:
                # After all who looked before, and have not committed yet what they begin.
                session.execute(select(func.pg_advisory_xact_lock(_BEGINNING)))
            insert_unless_there(session, Maintenance, kind=kind)
            row = _lock(session, kind)
            now = moment_of(session)
            if row.lease_until is not None and row.lease_until > now:
                raise Conflict(f"A {kind} is under way already.")
            row.token, row.lease_until, row.started_at = self._token, now + LIFE, now

    def kept(self) -> AbstractAsyncContextManager[None]:
        """Keep it while the block runs."""
        return renewed(self.renew, LIFE)

    def end(self, result: dict[str, Any]) -> None:
        """Give it back with its result; nothing happens if it was lost."""
        with self._database.session_scope() as session:
            row = _lock(session, self._kind)
            if row.token == self._token:
                row.token = row.lease_until = None
                row.finished_at, row.result = moment_of(session), result

    def renew(self) -> bool:
        """Keep it for `LIFE` from now on. False when it was lost: once it is over others may have
        begun what must not be under way, so it never comes back."""
        with self._database.session_scope() as session:
            row, now = _lock(session, self._kind), moment_of(session)
            if row.token != self._token or row.lease_until is None or row.lease_until <= now:
                return False
            row.lease_until = now + LIFE
            return True


def is_under_way(session: Session, kind: str) -> bool:
    """Whether somebody does it right now."""
    live = exists().where(Maintenance.kind == kind, Maintenance.lease_until > database_now())
    return bool(session.scalar(select(live)))


def may_begin(session: Session) -> bool:
    """Whether work may begin that must not be under way while garbage is collected: then no
    collection begins before this transaction's end, and sees what is written in it. Asked before
    anything is locked.
    """
    # On SQLite a transaction that writes is alone. On PostgreSQL neither would see the other's
    # uncommitted row: a statement of its own, as the next one must see what was committed before.
    if dialect_of(session) == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock_shared(_BEGINNING)))
    return not is_under_way(session, GARBAGE)


def require_no_collection(session: Session) -> None:
    """Raise `ServiceUnavailable` unless one `may_begin`: asked by whoever is about to store
    something."""
    if not may_begin(session):
        raise ServiceUnavailable("The node is being tidied up; send it again soon.")


def last_outcome(session: Session, kind: str) -> Outcome:
    """How the last one ended. Without a result none has been: the date is when counting began."""
    row = session.get(Maintenance, kind)
    return Outcome(None, None) if row is None else Outcome(row.finished_at, row.result)


def start_counting(session: Session, kind: str) -> None:
    """Count its schedule from now on, where it never ran."""
    insert_unless_there(session, Maintenance, kind=kind, finished_at=database_now())


def _lock(session: Session, kind: str) -> Maintenance:
    return session.scalars(
        select(Maintenance)
        .where(Maintenance.kind == kind)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one()
