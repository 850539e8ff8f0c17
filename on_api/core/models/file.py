"""Files: a user's named references to content."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, String, text
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.content import CID_LENGTH
from on_api.core.models.database import Base, new_id, utc_now
from on_api.core.models.leased_job import LeasedJob

NAME_LENGTH = 255
MEDIA_TYPE_LENGTH = 255
PUBLIC = "public"
PRIVATE = "private"

BLOCKS_UNKNOWN = text("visibility = 'private' AND blocks_known IS NULL AND sealed_size > 262144")
"""Condition for the files whose blocks may be missing in `private_blocks`; the smallest files are
one block, their root."""

FOR_OWNER = "owner"
FOR_PASSPHRASE = "passphrase"  # noqa: S105 (a kind of file)
FOR_RECIPIENTS = "recipients"
"""Values of `File.sealed_for`."""


class File(Base):
    """A file. `size` (bytes) and `sha256` describe the bytes that its owner sent; `created_at`
    rises strictly per user."""

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
    sealed_for: Mapped[str | None] = mapped_column(String(12))
    """Holder of the key to a private file. `owner`: an identity of the owner (`identity_id`);
    `passphrase`; `recipients`: others only, and not the server. None for a public file."""
    identity_id: Mapped[uuid.UUID | None] = mapped_column()
    """Identity that opens it. No foreign key: SQLite can't add one to an existing table. Identities
    are deleted only with their user, and so are files."""
    sealed_size: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes of the age file on the node; `size` counts the plaintext."""
    sealed_start: Mapped[bytes | None] = mapped_column(LargeBinary)
    """Header and nonce of the age file: all that is needed to open it before its chunks."""
    blocks_known: Mapped[bool | None] = mapped_column()
    """True if the blocks of this private file are in `private_blocks`."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    source_created_at: Mapped[datetime | None] = mapped_column()
    """Moment of its creation at the service that it was imported from."""

    __table_args__ = (
        CheckConstraint("visibility IN ('public', 'private')", name="visibility"),
        Index("ix_files_user_id_created_at", "user_id", "created_at", "id"),
        Index("ix_files_user_id_name_created_at", "user_id", "name", "created_at", "id"),
        Index("ix_files_user_id_cid_created_at", "user_id", "cid", "created_at", "id"),
        Index("ix_files_cid_created_at", "cid", "created_at"),
        Index("ix_files_identity_id", "identity_id"),
        Index(
            "ix_files_blocks_unknown",
            "cid",
            postgresql_where=BLOCKS_UNKNOWN,
            sqlite_where=BLOCKS_UNKNOWN,
        ),
    )


class VisibilityChange(LeasedJob, Base):
    """A job that makes a file private or public: its bytes are stored anew."""

    __tablename__ = "visibility_changes"

    file_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("files.id", ondelete="CASCADE"), unique=True
    )
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    visibility: Mapped[str] = mapped_column(String(8))
    due_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
    details: Mapped[str | None] = mapped_column(String(500))
    """Reason for which it waits, for a person."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    __table_args__ = (
        CheckConstraint("visibility IN ('public', 'private')", name="visibility"),
        Index("ix_visibility_changes_user_id", "user_id"),
    )
