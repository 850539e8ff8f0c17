"""What a user has used: storage now, egress this month."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from on_api.core.models import User
from on_api.core.models.database import utc_now


@dataclass(frozen=True, slots=True)
class StorageUsage:
    """Bytes charged and allowed."""

    bytes: int
    quota: int | None


@dataclass(frozen=True, slots=True)
class EgressUsage:
    """Bytes sent this month and allowed; `bytes` and `forecast` are None while nothing counts
    them."""

    bytes: int | None
    budget: int | None
    forecast: int | None
    period_end: datetime


@dataclass(frozen=True, slots=True)
class Usage:
    """Both."""

    storage: StorageUsage
    egress: EgressUsage


def usage_of(user: User) -> Usage:
    """A user's usage at this moment."""
    return Usage(
        storage=StorageUsage(user.usage.storage_bytes, user.storage_quota),
        egress=EgressUsage(None, user.egress_budget, None, _next_month(utc_now())),
    )


def _next_month(moment: datetime) -> datetime:
    """The first moment of the next calendar month in UTC."""
    year, month = (moment.year + 1, 1) if moment.month == 12 else (moment.year, moment.month + 1)
    return datetime(year, month, 1, tzinfo=UTC)
