"""Outbox of events: what happened to a user's objects, kept for those who are to be notified."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, text
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.database import Base, utc_now

_UNNUMBERED = text("seq IS NULL")


class Event(Base):
    """One event, written in the transaction of the change that it reports.

    `seq` is assigned after that commit, by one relay at a time: it is the order in which events may
    be read. (Serial ids become visible out of order.)
    """

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    seq: Mapped[int | None] = mapped_column(BigInteger, unique=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(32))
    subject_id: Mapped[uuid.UUID] = mapped_column()
    data: Mapped[dict[str, Any]] = mapped_column()
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    __table_args__ = (
        Index("ix_events_user_id_seq", "user_id", "seq"),
        Index("ix_events_created_at", "created_at"),
        Index(
            "ix_events_unnumbered",
            "id",
            postgresql_where=_UNNUMBERED,
            sqlite_where=_UNNUMBERED,
        ),
    )
