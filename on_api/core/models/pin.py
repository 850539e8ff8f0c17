"""Pins: requests of the Pinning Service API to keep content, and the work of getting it."""

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
    """One pin request. Once `pinned` it is a reference to its content; before, a job with a lease.

    `created_at` has milliseconds and rises strictly per user. A pin that was removed while it was
    being worked on, or replaced, is `removed_at` and seen by nobody until its work has ended.
    """

    __tablename__ = "pins"

    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    cid: Mapped[str] = mapped_column(String(CID_LENGTH))
    source_cid: Mapped[str] = mapped_column(String(CID_LENGTH))
    name: Mapped[str | None] = mapped_column(String(PIN_NAME_LENGTH))
    meta: Mapped[dict[str, str] | None] = mapped_column()
    origins: Mapped[list[str]] = mapped_column(default=list)
    """Where the client says the content can be had, as far as it may be dialled at all."""
    status: Mapped[str] = mapped_column(String(8), default=QUEUED)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    source_created_at: Mapped[datetime | None] = mapped_column()
    """When it was pinned where it was imported from."""
    removed_at: Mapped[datetime | None] = mapped_column()
    kept_for: Mapped[uuid.UUID | None] = mapped_column()
    """The pin that replaces this one: its content is held until that one has an end."""

    due_at: Mapped[datetime] = mapped_column(default=utc_now)
    deadline_at: Mapped[datetime] = mapped_column()
    """When trying ends."""
    needs_fetch: Mapped[bool] = mapped_column(default=False)
    """Its blocks were looked for on the node and are not all there."""
    dag_size: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes of the DAG: so far while pinning, all of them once pinned."""
    blocks: Mapped[int | None] = mapped_column(BigInteger)
    details: Mapped[str | None] = mapped_column(String(DETAILS_LENGTH))
    """Why it waits or failed, for a person."""

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
        # When the worker is to look again.
        Index(
            "ix_pins_due_at",
            "needs_fetch",
            "due_at",
            postgresql_where=_UNDER_WAY,
            sqlite_where=_UNDER_WAY,
        ),
        # As many rows as are worked on: who asks whether one is need not look through the queue.
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
