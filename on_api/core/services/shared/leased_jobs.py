"""Jobs of any kind: claiming under a lease, renewing, returning to the queue.

Every change asks for the lease's token: a worker that has lost it changes nothing more. Leases are
written and compared by the database's clock.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from on_api.core.models.database import database_now, moment_of, new_id
from on_api.core.models.leased_job import LeasedJob

J = TypeVar("J", bound=LeasedJob)
MOST_COUNTED = 10_000
"""Jobs up to which a queue is counted."""


def is_due(model: type[LeasedJob]) -> ColumnElement[bool]:
    """Return the SQL condition that a job is due and not leased."""
    return and_(model.due_at <= database_now(), _is_free(model))


def _is_free(model: type[LeasedJob]) -> ColumnElement[bool]:
    return or_(model.lease_until.is_(None), model.lease_until < database_now())


def any_due(session: Session, model: type[LeasedJob], *conditions: ColumnElement[bool]) -> bool:
    """Return whether a claim would find a job. Reads only: on SQLite looking must not take the
    writer's place."""
    return bool(session.scalar(select(exists().where(is_due(model), *conditions))))


def next_due(
    session: Session, model: type[LeasedJob], *conditions: ColumnElement[bool]
) -> float | None:
    """Return the seconds until the next job is due, below 0 if it is overdue; None while none
    waits.

    Leased jobs are left out: their end wakes the worker, and leases that expire are found by
    looking now and then.
    """
    due_at = session.scalar(select(func.min(model.due_at)).where(_is_free(model), *conditions))
    return None if due_at is None else (due_at - moment_of(session)).total_seconds()


def queue_length(session: Session, model: type[LeasedJob], *conditions: ColumnElement[bool]) -> int:
    """Return the number of jobs that wait or are worked on, counted up to `MOST_COUNTED`."""
    some = select(model.id).where(*conditions).limit(MOST_COUNTED)
    return session.scalar(select(func.count()).select_from(some.subquery())) or 0


def claim(
    session: Session, model: type[J], life: timedelta, *conditions: ColumnElement[bool]
) -> tuple[J, uuid.UUID] | None:
    """Claim the job that has been due for longest, for `life`. Returns it with its token."""
    row = session.scalar(
        select(model)
        .where(is_due(model), *conditions)
        .order_by(model.due_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if row is None:
        return None
    row.attempts += 1
    token = lease(row, life)
    session.flush()
    return row, token


def lease(row: LeasedJob, life: timedelta) -> uuid.UUID:
    """Lease a row that is locked. Returns the token."""
    row.lease_token, row.lease_until = new_id(), database_now(life)
    return row.lease_token


def renew(
    session: Session,
    model: type[LeasedJob],
    job_id: uuid.UUID,
    token: uuid.UUID,
    life: timedelta,
) -> bool:
    """Renew a job's lease for `life` from now on. Returns False when it was lost, or the job is no
    longer wanted."""
    kept = session.scalar(
        update(model)
        .where(model.id == job_id, model.lease_token == token)
        .values(lease_until=database_now(life))
        .returning(model.id)
    )
    return kept is not None


def lock_claimed(session: Session, model: type[J], job_id: uuid.UUID, token: uuid.UUID) -> J | None:
    """Lock and return the job that was claimed with `token`. None when the lease was lost, or the
    job is no longer wanted."""
    return session.scalar(
        select(model)
        .where(model.id == job_id, model.lease_token == token)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def put_back(row: LeasedJob, *, due_in: timedelta, counted: bool = True) -> None:
    """Return a job to the queue. `counted=False`: without counting the attempt."""
    row.release()
    row.due_at = database_now(due_in)
    row.attempts -= not counted
