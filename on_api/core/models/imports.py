"""Imports: the items that are to be moved here from another service, and their progress."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.content import CID_LENGTH
from on_api.core.models.database import Base, new_id, utc_now
from on_api.core.models.leased_job import LeasedJob

REASON_LENGTH = 500
URL_LENGTH = 2048
ITEM_NAME_LENGTH = 255

DRAFT = "draft"
RUNNING = "running"
PAUSED = "paused"
DONE = "done"
FAILED = "failed"
CANCELLED = "cancelled"
"""Values of `Import.status`. `done`: every item was processed, and some or all of them are here;
`failed`: none of them came."""

WAITING = "waiting"
MOVING = "moving"
SKIPPED = "skipped"
"""Values of `ImportItem.status`, besides `DONE` and `FAILED`. `skipped`: it was here already."""

_DUE = text("due_at IS NOT NULL")


class Import(LeasedJob, Base):
    """One import. `due_at` is set while there is work for a worker: reading the source's list
    (until `listed_at`) and, once it is `running`, moving its items.

    `secrets` are the source's credentials, sealed; they are erased once the list was read, or when
    the import ends before that. `done` counts items that are here, `skipped` those of them that
    were here before.
    """

    __tablename__ = "imports"

    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    key_id: Mapped[uuid.UUID | None] = mapped_column()
    kind: Mapped[str] = mapped_column(String(16))
    source: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Description of the source, without credentials."""
    secrets: Mapped[bytes | None] = mapped_column(LargeBinary)
    secret_version: Mapped[int | None] = mapped_column()
    route: Mapped[str] = mapped_column(String(8))
    gateway_url: Mapped[str | None] = mapped_column(String(URL_LENGTH))
    status: Mapped[str] = mapped_column(String(10), default=DRAFT)
    error: Mapped[str | None] = mapped_column(String(REASON_LENGTH))
    """Reason for which the import as a whole waits or has failed, for a person."""

    resume: Mapped[str | None] = mapped_column(String)
    """Cursor of the source's last page that was read; its list is read on after it."""
    delegates: Mapped[list[str]] = mapped_column(default=list)
    """Multiaddrs at which, by the source's word, its content can be had."""
    listed_at: Mapped[datetime | None] = mapped_column()
    total: Mapped[int] = mapped_column(BigInteger, default=0)
    done: Mapped[int] = mapped_column(BigInteger, default=0)
    failed: Mapped[int] = mapped_column(BigInteger, default=0)
    skipped: Mapped[int] = mapped_column(BigInteger, default=0)
    moved_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes that were moved; content that was here before isn't counted."""
    known_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Sum of the sizes in bytes that the source's list gives."""
    unknown_sizes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Number of items whose size the list doesn't give."""
    here: Mapped[int] = mapped_column(BigInteger, default=0)
    """Number of items whose content the user held already when they were listed."""
    here_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Part of `known_bytes` that belongs to such items."""

    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime | None] = mapped_column()
    finished_at: Mapped[datetime | None] = mapped_column()

    __table_args__ = (
        CheckConstraint(
            "status IN ('draft', 'running', 'paused', 'done', 'failed', 'cancelled')",
            name="status",
        ),
        CheckConstraint("route IN ('auto', 'ipfs', 'gateway')", name="route"),
        Index("ix_imports_user_id_created_at", "user_id", "created_at", "id"),
        Index("ix_imports_due_at", "due_at", postgresql_where=_DUE, sqlite_where=_DUE),
    )


class ImportItem(Base):
    """One item to move. The worker that holds its import's lease works on it.

    `created_at` rises strictly in an import, in the source's order. `pin_id` or `file_id` is the
    row that it became; a pin that is under way exists before its content.
    """

    __tablename__ = "import_items"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    import_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("imports.id", ondelete="CASCADE"))
    position: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column()
    source_cid: Mapped[str] = mapped_column(String(ITEM_NAME_LENGTH))
    """The CID as the source spells it, cut if it is not a CID."""
    cid: Mapped[str | None] = mapped_column(String(CID_LENGTH))
    name: Mapped[str | None] = mapped_column(String(ITEM_NAME_LENGTH))
    meta: Mapped[dict[str, Any] | None] = mapped_column()
    file: Mapped[dict[str, Any] | None] = mapped_column()
    """Values for the row of an item that becomes a file."""
    origins: Mapped[list[str]] = mapped_column(default=list)
    source_created_at: Mapped[datetime | None] = mapped_column()
    size: Mapped[int | None] = mapped_column(BigInteger)
    """Size in bytes by the source's word."""

    status: Mapped[str] = mapped_column(String(8), default=WAITING)
    route: Mapped[str | None] = mapped_column(String(8))
    """Way by which the bytes came, or are coming: `local`, `ipfs`, `gateway`, `car`."""
    blocks: Mapped[int | None] = mapped_column(BigInteger)
    dag_size: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes of all its blocks; while it is moving, of those that have come so far."""
    verified: Mapped[bool] = mapped_column(default=False)
    """True if every block was read from our node and hashed."""
    was_here: Mapped[bool] = mapped_column(default=False)
    seconds: Mapped[float | None] = mapped_column()
    """Seconds from the beginning to the end of its move."""
    started_at: Mapped[datetime | None] = mapped_column()
    reason: Mapped[str | None] = mapped_column(String(REASON_LENGTH))
    """Reason for its failure, for a person."""
    note: Mapped[str | None] = mapped_column(String(REASON_LENGTH))
    """Note on what could not be kept or verified although the item is here, for a person."""
    pin_id: Mapped[uuid.UUID | None] = mapped_column()
    file_id: Mapped[uuid.UUID | None] = mapped_column()

    __table_args__ = (
        CheckConstraint(
            "status IN ('waiting', 'moving', 'done', 'skipped', 'failed')", name="status"
        ),
        UniqueConstraint("import_id", "position"),
        Index("ix_import_items_import_id_created_at", "import_id", "created_at", "id"),
        Index("ix_import_items_of_status", "import_id", "status", "created_at", "id"),
    )
