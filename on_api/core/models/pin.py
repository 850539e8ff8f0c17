"""Pins: requests of the Pinning Service API to keep content, and the jobs that fetch it."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.content import CID_LENGTH
from on_api.core.models.database import Base, utc_now
from on_api.core.models.leased_job import LeasedJob

PIN_NAME_LENGTH = 255
DETAILS_LENGTH = 500

QUEUED = "queued"
PINNING = "pinning"
PINNED_STATUS = "pinned"
FAILED = "failed"

_UNDER_WAY = text("status IN ('queued', 'pinning')")
_LEASED = text("lease_until IS NOT NULL")


class Pin(LeasedJob, Base):
    """One pin request. Once `pinned` it is a reference to its content; before that, a job with a
    lease.

    `created_at` has milliseconds and rises strictly per user. A pin that was removed or replaced
    while it was being worked on has `removed_at` set and is hidden until its work has ended.
    """

    __tablename__ = "pins"

    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    cid: Mapped[str] = mapped_column(String(CID_LENGTH))
    source_cid: Mapped[str] = mapped_column(String(CID_LENGTH))
    name: Mapped[str | None] = mapped_column(String(PIN_NAME_LENGTH))
    meta: Mapped[dict[str, str] | None] = mapped_column()
    origins: Mapped[list[str]] = mapped_column(default=list)
    """Multiaddrs at which, by the client's word, the content can be had; only those that may be
    dialled."""
    status: Mapped[str] = mapped_column(String(8), default=QUEUED)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    source_created_at: Mapped[datetime | None] = mapped_column()
    """Moment of its pinning at the service that it was imported from."""
    removed_at: Mapped[datetime | None] = mapped_column()
    kept_for: Mapped[uuid.UUID | None] = mapped_column()
    """The pin that replaces this one, whose content stays held until that pin succeeds or fails."""

    due_at: Mapped[datetime] = mapped_column(default=utc_now)
    deadline_at: Mapped[datetime] = mapped_column()
    """Moment after which it is not tried any more."""
    needs_fetch: Mapped[bool] = mapped_column(default=False)
    """True if the node was searched for its blocks and lacks some of them."""
    dag_size: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes of the DAG: those fetched so far while pinning, all of them once pinned."""
    blocks: Mapped[int | None] = mapped_column(BigInteger)
    details: Mapped[str | None] = mapped_column(String(DETAILS_LENGTH))
    """Reason for which it waits or failed, for a person."""

    __table_args__ = (
        CheckConstraint("status IN ('queued', 'pinning', 'pinned', 'failed')", name="status"),
        UniqueConstraint("user_id", "created_at"),
        Index("ix_pins_user_id_status_created_at", "user_id", "status", "created_at"),
        Index("ix_pins_user_id_name_created_at", "user_id", "name", "created_at", "id"),
        Index("ix_pins_user_id_cid_created_at", "user_id", "cid", "created_at", "id"),
        Index("ix_pins_cid_created_at", "cid", "created_at"),
        Index(
            "ix_pins_queue",
            "needs_fetch",
            "user_id",
            "due_at",
            postgresql_where=_UNDER_WAY,
            sqlite_where=_UNDER_WAY,
        ),
        # For the moment at which the worker is to look again.
        Index(
            "ix_pins_due_at",
            "needs_fetch",
            "due_at",
            postgresql_where=_UNDER_WAY,
            sqlite_where=_UNDER_WAY,
        ),
        # One row per pin that is worked on: checking for a CID need not search the queue.
        Index(
            "ix_pins_leased",
            "cid",
            "lease_until",
            postgresql_where=_LEASED,
            sqlite_where=_LEASED,
        ),
        Index(
            "ix_pins_kept_for",
            "kept_for",
            postgresql_where=text("kept_for IS NOT NULL"),
            sqlite_where=text("kept_for IS NOT NULL"),
        ),
    )
