"""Traffic in and out: sums by hour, day and month, and what each account has spent of its budget.

There is no row for each request, and no foreign keys: sums stay when the objects that they count
are gone.
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
"""Characters of nginx's id of a request, `$request_id`."""

OWNER = "owner"
KEY = "key"
INSTANCE = "instance"
"""Values of `subject_kind`: the owner of a budget."""

EVERYBODY = uuid.UUID(int=0)
"""The `subject_id` of the whole instance."""

MONTH_LENGTH = 7
"""Characters of a month in UTC as text, such as `2026-11`."""


class Traffic(Base):
    """Sums of one period and one combination of owner, key, share, file and root. Each byte is in
    exactly one row: older rows are merged into coarser ones, never copied.

    `id` is a hash of these columns: to a unique index NULLs would all be different.
    """

    __tablename__ = "traffic"

    id: Mapped[bytes] = mapped_column(LargeBinary(16), primary_key=True)
    granularity: Mapped[str] = mapped_column(String(5))
    period: Mapped[datetime] = mapped_column()
    """Beginning of the period, in UTC."""
    kind: Mapped[str] = mapped_column(String(16))
    owner_id: Mapped[uuid.UUID | None] = mapped_column()
    key_id: Mapped[uuid.UUID | None] = mapped_column()
    share_id: Mapped[uuid.UUID | None] = mapped_column()
    file_id: Mapped[uuid.UUID | None] = mapped_column()
    cid: Mapped[str | None] = mapped_column(String(CID_LENGTH))
    requests: Mapped[int] = mapped_column(BigInteger)
    unchanged: Mapped[int] = mapped_column(BigInteger)
    """Number of the requests that were answered 304."""
    failed: Mapped[int] = mapped_column(BigInteger)
    """Number of the requests that were answered with an error or cut short by on-api."""
    bytes_out: Mapped[int] = mapped_column(BigInteger)
    bytes_in: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (
        Index("ix_traffic_owner_id_period", "owner_id", "period"),
        Index("ix_traffic_period", "period"),
        Index("ix_traffic_granularity_period", "granularity", "period"),
    )


class TrafficTotal(Base):
    """Sums of one hour and kind over all users, written together with the rows of `Traffic` that
    they add up: reports on the whole instance then read one row per hour and kind. Never merged."""

    __tablename__ = "traffic_totals"

    period: Mapped[datetime] = mapped_column(primary_key=True)
    """Beginning of the hour, in UTC."""
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    unchanged: Mapped[int] = mapped_column(BigInteger)
    failed: Mapped[int] = mapped_column(BigInteger)
    bytes_out: Mapped[int] = mapped_column(BigInteger)
    bytes_in: Mapped[int] = mapped_column(BigInteger)


class EgressCounter(Base):
    """Bytes that an account has spent in a month, including the processes' open credit: never less
    than what was delivered."""

    __tablename__ = "egress_counters"

    subject_kind: Mapped[str] = mapped_column(String(8), primary_key=True)
    subject_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    month: Mapped[str] = mapped_column(String(MONTH_LENGTH), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    warned_percent: Mapped[int] = mapped_column(default=0)
    """The highest threshold, in percent, that was reported for the budget `warned_budget`."""
    warned_budget: Mapped[int | None] = mapped_column(BigInteger)


class MeteringProcess(Base):
    """A process that has counted traffic lately. If it has open credit and has been silent for
    long, it counts as dead."""

    __tablename__ = "metering_processes"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    seen_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
    flushed: Mapped[int] = mapped_column(BigInteger, default=0)
    """Number of its last flush, by which one whose commit went unanswered is found to have
    happened."""


class EgressCredit(Base):
    """Bytes that a process has taken for an account and not yet accounted for. The account's
    counter includes them."""

    __tablename__ = "egress_credits"

    process_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    subject_kind: Mapped[str] = mapped_column(String(8), primary_key=True)
    subject_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    month: Mapped[str] = mapped_column(String(MONTH_LENGTH), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)


class AccelCharge(Base):
    """An answer that nginx fetches from the node by itself: charged in full, until nginx's log says
    how much of it was sent. The row exists until then."""

    __tablename__ = "accel_charges"

    id: Mapped[str] = mapped_column(String(ACCEL_ID_LENGTH), primary_key=True)
    """Id that nginx has given to the request."""
    length: Mapped[int] = mapped_column(BigInteger)
    period: Mapped[datetime] = mapped_column()
    """Hour in which it is counted, by its beginning."""
    owner_id: Mapped[uuid.UUID | None] = mapped_column()
    key_id: Mapped[uuid.UUID | None] = mapped_column()
    cid: Mapped[str | None] = mapped_column(String(CID_LENGTH))
    key_counted: Mapped[bool] = mapped_column()
    """True if the key had a budget, and with it a counter."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
