"""Imports: what is to be moved here from somewhere else, item by item, and how far that is."""

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
"""Values of `Import.status`. `done`: every item was gone through, and some or all of them are here;
`failed`: none of it came."""

WAITING = "waiting"
MOVING = "moving"
SKIPPED = "skipped"
"""Values of `ImportItem.status`, with `DONE` and `FAILED`. `skipped`: it was here already."""

_DUE = text("due_at IS NOT NULL")


class Import(LeasedJob, Base):
    """One import. `due_at` is set while there is work for a worker: reading the source's list
    (until `listed_at`), then, once it is `running`, moving its items.

    `secrets` are the source's credentials, sealed; they are forgotten when the import ends.
    `done` counts items that are here, `skipped` those of them that were so before.
    """

    __tablename__ = "imports"

    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    key_id: Mapped[uuid.UUID | None] = mapped_column()
    kind: Mapped[str] = mapped_column(String(16))
    source: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Where it comes from, without credentials."""
    secrets: Mapped[bytes | None] = mapped_column(LargeBinary)
    secret_version: Mapped[int | None] = mapped_column()
    route: Mapped[str] = mapped_column(String(8))
    gateway_url: Mapped[str | None] = mapped_column(String(URL_LENGTH))
    status: Mapped[str] = mapped_column(String(10), default=DRAFT)
    error: Mapped[str | None] = mapped_column(String(REASON_LENGTH))
    """Why it waits or has failed as a whole, for a person."""

    resume: Mapped[str | None] = mapped_column(String)
    """Behind which of the source's pages its list is read on."""
    delegates: Mapped[list[str]] = mapped_column(default=list)
    """Multiaddrs at which the source says its content can be had."""
    listed_at: Mapped[datetime | None] = mapped_column()
    total: Mapped[int] = mapped_column(BigInteger, default=0)
    done: Mapped[int] = mapped_column(BigInteger, default=0)
    failed: Mapped[int] = mapped_column(BigInteger, default=0)
    skipped: Mapped[int] = mapped_column(BigInteger, default=0)
    moved_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """What was here before isn't counted."""
    known_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Sum of the sizes that the source's list told."""
    unknown_sizes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Items of which it told none."""
    here: Mapped[int] = mapped_column(BigInteger, default=0)
    """Items whose content the user held already when they were listed."""
    here_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Of `known_bytes`, those of such items."""

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
    """One thing to move. It is worked on by whoever holds its import's lease.

    `created_at` rises strictly in an import, in the source's order. `pin_id` or `file_id` is what
    it became; a pin that is under way is there before its content.
    """

    __tablename__ = "import_items"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    import_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("imports.id", ondelete="CASCADE"))
    position: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column()
    source_cid: Mapped[str] = mapped_column(String(ITEM_NAME_LENGTH))
    """As the source spells it, cut where it is no CID."""
    cid: Mapped[str | None] = mapped_column(String(CID_LENGTH))
    name: Mapped[str | None] = mapped_column(String(ITEM_NAME_LENGTH))
    meta: Mapped[dict[str, Any] | None] = mapped_column()
    file: Mapped[dict[str, Any] | None] = mapped_column()
    """Of what becomes a file: what its row needs to know."""
    origins: Mapped[list[str]] = mapped_column(default=list)
    source_created_at: Mapped[datetime | None] = mapped_column()
    size: Mapped[int | None] = mapped_column(BigInteger)
    """As the source tells it."""

    status: Mapped[str] = mapped_column(String(8), default=WAITING)
    route: Mapped[str | None] = mapped_column(String(8))
    """How the bytes came, or are coming: `local`, `ipfs`, `gateway`, `car`."""
    blocks: Mapped[int | None] = mapped_column(BigInteger)
    dag_size: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes of all its blocks; while it is moving, of those that came so far."""
    verified: Mapped[bool] = mapped_column(default=False)
    """Every block was read from our node and hashed."""
    was_here: Mapped[bool] = mapped_column(default=False)
    seconds: Mapped[float | None] = mapped_column()
    """From its beginning to its end."""
    started_at: Mapped[datetime | None] = mapped_column()
    reason: Mapped[str | None] = mapped_column(String(REASON_LENGTH))
    """Why it failed, for a person."""
    note: Mapped[str | None] = mapped_column(String(REASON_LENGTH))
    """What of it could not be kept or verified though it is here, for a person."""
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
