"""Files: a user's named references to content."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.content import CID_LENGTH
from on_api.core.models.database import Base, new_id, utc_now

NAME_LENGTH = 255
MEDIA_TYPE_LENGTH = 255
PUBLIC = "public"
PRIVATE = "private"


class File(Base):
    """A file. `size` and `sha256` are of the bytes that its owner sent; `created_at` rises
    strictly per user."""

    __tablename__ = "files"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    cid: Mapped[str] = mapped_column(ForeignKey("contents.cid"))
    source_cid: Mapped[str | None] = mapped_column(String(CID_LENGTH))
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    size: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str] = mapped_column(String(MEDIA_TYPE_LENGTH))
    sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    visibility: Mapped[str] = mapped_column(String(8), default=PUBLIC)
    meta: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    __table_args__ = (
        CheckConstraint("visibility IN ('public', 'private')", name="visibility"),
        Index("ix_files_user_id_created_at", "user_id", "created_at", "id"),
        Index("ix_files_user_id_name", "user_id", "name"),
        Index("ix_files_cid", "cid"),
    )
