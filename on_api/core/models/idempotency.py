"""Requests that must not be done twice: claims of idempotency keys, and the answers given."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import ForeignKey, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.database import Base, new_id, utc_now

KEY_LENGTH = 255
ROUTE_LENGTH = 255


class IdempotencyRecord(Base):
    """One `Idempotency-Key` of one user, API key and route. Without an answer it is claimed until
    `lease_until`."""

    __tablename__ = "idempotency_records"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    key_id: Mapped[uuid.UUID] = mapped_column()
    route: Mapped[str] = mapped_column(String(ROUTE_LENGTH))
    key: Mapped[str] = mapped_column(String(KEY_LENGTH))
    token: Mapped[uuid.UUID] = mapped_column(default=new_id)
    lease_until: Mapped[datetime] = mapped_column()
    status: Mapped[int | None] = mapped_column()
    answer: Mapped[bytes | None] = mapped_column(LargeBinary)
    """The request's fingerprint and the answer's body, sealed: the fingerprint may be a hash over a
    password, the body may hold a secret that is shown once."""
    secret_version: Mapped[int] = mapped_column()
    created_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)

    __table_args__ = (UniqueConstraint("user_id", "key_id", "route", "key"),)
