"""A user's usage: storage now, egress this month."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from on_api.core.models import EgressCounter, EgressCredit, User
from on_api.core.models.database import utc_now
from on_api.core.models.traffic import OWNER
from on_api.core.services.content import leftovers
from on_api.core.services.traffic.metering import month_end

LEAST_ELAPSED_SECONDS = 3600.0
"""Seconds of a month that must have passed for its rate to be used."""


@dataclass(frozen=True, slots=True)
class StorageUsage:
    """Bytes charged, including those that failed work has left on the node, and bytes allowed."""

    bytes: int
    quota: int | None


@dataclass(frozen=True, slots=True)
class EgressUsage:
    """Egress of this month in bytes: spent; of these, held by processes as credit; allowed; and
    spent by the month's end at the rate so far."""

    bytes: int
    reserved: int
    budget: int | None
    forecast: int
    period_end: datetime


@dataclass(frozen=True, slots=True)
class Usage:
    """Storage and egress of a user."""

    storage: StorageUsage
    egress: EgressUsage


def usage_of(session: Session, user: User) -> Usage:
    """Return a user's usage now."""
    now = utc_now()
    month = now.strftime("%Y-%m")
    counter = session.get(EgressCounter, (OWNER, user.id, month))
    spent = counter.bytes if counter is not None else 0
    reserved = session.scalar(
        select(func.coalesce(func.sum(EgressCredit.bytes), 0)).where(
            EgressCredit.subject_kind == OWNER,
            EgressCredit.subject_id == user.id,
            EgressCredit.month == month,
        )
    )
    reserved = int(reserved or 0)
    at_rate = forecast(spent - reserved, now)
    return Usage(
        storage=StorageUsage(
            user.usage.storage_bytes + leftovers.reserved(session, user.id), user.storage_quota
        ),
        egress=EgressUsage(spent, reserved, user.egress_budget, at_rate, month_end(now)),
    )


def forecast(spent: int, now: datetime) -> int:
    """Return the bytes spent by the month's end at the present rate: spent · length of the month /
    time of it that has passed (at least an hour)."""
    begin = datetime(now.year, now.month, 1, tzinfo=UTC)
    length = (month_end(now) - begin).total_seconds()
    return round(spent * length / max((now - begin).total_seconds(), LEAST_ELAPSED_SECONDS))
