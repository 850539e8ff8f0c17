"""What went out and came in: sums by hour, day and month, and what each account has spent of its
budget.

No row for each request, and no foreign keys: what was counted stays when whose it was is gone.
"""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import BigInteger, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.content import CID_LENGTH
from on_api.core.models.database import Base, utc_now

HOUR = "hour"
DAY = "day"
MONTH = "month"
"""Values of `Traffic.granularity`."""

ACCEL_ID_LENGTH = 32
"""Of the name that nginx gives to a request: `$request_id`."""

OWNER = "owner"
KEY = "key"
INSTANCE = "instance"
"""Whose budget: values of `subject_kind`."""

EVERYBODY = uuid.UUID(int=0)
"""The `subject_id` of the whole instance."""

MONTH_LENGTH = 7
"""Of a month in UTC as text: `2026-11`."""


class Traffic(Base):
    """Sums of one period and one combination of who and what. Each byte is in exactly one row:
    older rows are merged into coarser ones, never copied.

    `id` is a hash of the rest: NULLs would all be different to a unique index.
    """

    __tablename__ = "traffic"

    id: Mapped[bytes] = mapped_column(LargeBinary(16), primary_key=True)
    granularity: Mapped[str] = mapped_column(String(5))
    period: Mapped[datetime] = mapped_column()
    """Its beginning, in UTC."""
    kind: Mapped[str] = mapped_column(String(16))
    owner_id: Mapped[uuid.UUID | None] = mapped_column()
    key_id: Mapped[uuid.UUID | None] = mapped_column()
    share_id: Mapped[uuid.UUID | None] = mapped_column()
    file_id: Mapped[uuid.UUID | None] = mapped_column()
    cid: Mapped[str | None] = mapped_column(String(CID_LENGTH))
    requests: Mapped[int] = mapped_column(BigInteger)
    unchanged: Mapped[int] = mapped_column(BigInteger)
    """Of the requests, those answered 304."""
    failed: Mapped[int] = mapped_column(BigInteger)
    """Of the requests, those answered with an error or cut short by us."""
    bytes_out: Mapped[int] = mapped_column(BigInteger)
    bytes_in: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (
        Index("ix_traffic_owner_id_period", "owner_id", "period"),
        Index("ix_traffic_period", "period"),
        Index("ix_traffic_granularity_period", "granularity", "period"),
    )


class TrafficTotal(Base):
    """Sums of one hour and kind over everybody, written with the rows of `Traffic` that they sum:
    what is asked of the whole instance costs no more than its hours. Never merged."""

    __tablename__ = "traffic_totals"

    period: Mapped[datetime] = mapped_column(primary_key=True)
    """The hour's beginning, in UTC."""
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    unchanged: Mapped[int] = mapped_column(BigInteger)
    failed: Mapped[int] = mapped_column(BigInteger)
    bytes_out: Mapped[int] = mapped_column(BigInteger)
    bytes_in: Mapped[int] = mapped_column(BigInteger)


class EgressCounter(Base):
    """Bytes that an account has spent in a month, what processes have open included: never less
    than what was delivered."""

    __tablename__ = "egress_counters"

    subject_kind: Mapped[str] = mapped_column(String(8), primary_key=True)
    subject_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    month: Mapped[str] = mapped_column(String(MONTH_LENGTH), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    warned_percent: Mapped[int] = mapped_column(default=0)
    """The highest threshold that was told of, for the budget `warned_budget`."""
    warned_budget: Mapped[int | None] = mapped_column(BigInteger)


class MeteringProcess(Base):
    """A process that has counted something lately. With credit open and silent for long, it is
    taken for dead."""

    __tablename__ = "metering_processes"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    seen_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
    flushed: Mapped[int] = mapped_column(BigInteger, default=0)
    """The number of its last flush: one whose commit went unanswered is told by it."""


class EgressCredit(Base):
    """Bytes that a process has taken for an account and not yet told what for. They are in the
    account's counter."""

    __tablename__ = "egress_credits"

    process_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    subject_kind: Mapped[str] = mapped_column(String(8), primary_key=True)
    subject_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    month: Mapped[str] = mapped_column(String(MONTH_LENGTH), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)


class AccelCharge(Base):
    """An answer that nginx fetches from the node by itself: charged in full, until nginx's log says
    how much of it went out. A row lives as long as that is awaited."""

    __tablename__ = "accel_charges"

    id: Mapped[str] = mapped_column(String(ACCEL_ID_LENGTH), primary_key=True)
    """nginx's name for the request."""
    length: Mapped[int] = mapped_column(BigInteger)
    period: Mapped[datetime] = mapped_column()
    """The hour in which it is counted."""
    owner_id: Mapped[uuid.UUID | None] = mapped_column()
    key_id: Mapped[uuid.UUID | None] = mapped_column()
    cid: Mapped[str | None] = mapped_column(String(CID_LENGTH))
    key_counted: Mapped[bool] = mapped_column()
    """Whether the key had a budget, and with it a counter."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
