"""Shares: links by which a file can be had without an account."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.database import Base, new_id, utc_now


class Share(Base):
    """A link to one file. Only a hash of its token is kept. It is deleted with the file."""

    __tablename__ = "shares"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    file_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"))
    token_hash: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    """SHA-256 of the token, which has 256 random bits of its own."""
    prefix: Mapped[str] = mapped_column(String(16))
    """First characters of the token, by which its owner recognises it."""
    expires_at: Mapped[datetime | None] = mapped_column()
    max_downloads: Mapped[int | None] = mapped_column(BigInteger)
    downloads: Mapped[int] = mapped_column(BigInteger, default=0)
    sent_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes granted so far, over all downloads."""
    left_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes that the downloads begun so far have left to send; below 0 when parts were sent twice.
    None: no download has begun since this is counted."""
    whole_begun: Mapped[bool | None] = mapped_column()
    """True if the latest download asked for the whole file. None: not known."""
    password_hash: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    revoked_at: Mapped[datetime | None] = mapped_column()

    __table_args__ = (
        CheckConstraint("max_downloads > 0", name="max_downloads"),
        Index("ix_shares_user_id_created_at", "user_id", "created_at", "id"),
        Index("ix_shares_file_id", "file_id"),
    )
