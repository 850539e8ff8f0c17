"""API keys and the short-lived tokens of password logins, in one table since both are checked
alike."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from on_api.core.models.database import Base, new_id, utc_now
from on_api.core.models.user import User

KEY = "key"
TOKEN = "token"  # noqa: S105 (a kind of row)


class ApiKey(Base):
    """A key: only its HMAC is kept. `kind` tells keys (listed, revoked by id) from login tokens."""

    __tablename__ = "keys"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(8), default=KEY)
    name: Mapped[str] = mapped_column(String(255))
    prefix: Mapped[str] = mapped_column(String(16))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    secret_version: Mapped[int] = mapped_column()
    scopes: Mapped[list[str]] = mapped_column()
    expires_at: Mapped[datetime | None] = mapped_column()
    max_uses: Mapped[int | None] = mapped_column(BigInteger)
    uses: Mapped[int] = mapped_column(BigInteger, default=0)
    max_bytes: Mapped[int | None] = mapped_column(BigInteger)
    bytes_used: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes uploaded with the key, including uploads in flight."""
    egress_budget: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes that may be downloaded with the key in a calendar month; None: no limit of its own."""
    last_used_at: Mapped[datetime | None] = mapped_column()
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    revoked_at: Mapped[datetime | None] = mapped_column()

    user: Mapped[User] = relationship()

    __table_args__ = (
        CheckConstraint("kind IN ('key', 'token')", name="kind"),
        Index("ix_keys_user_id", "user_id", "kind", "created_at"),
        Index("ix_keys_expires_at", "expires_at"),
    )
