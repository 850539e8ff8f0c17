"""What lies on the node: one row a DAG, who holds it, and the leases of the work that is putting
it there."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String, false, text
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.database import Base, new_id, utc_now

CID_LENGTH = 128
NODE_ID_LENGTH = 128
"""Of a libp2p identity; those of today have 46 to 62 characters."""

PINNED = "pinned"
UNPINNING = "unpinning"
ABSENT = "absent"


class Content(Base):
    """One DAG, under its normalised CID. `pinned → unpinning(lease_token) → absent` and back to
    `pinned`.

    `pin_root_id` names the pin that covers it: itself, or while it is `pinned` a bundle, which is a
    content as well. `generation` rises each time its removal begins. `unreferenced_at` is set while
    nobody holds it; the row is locked by whoever changes its holdings. A row is never deleted:
    without it a removal in between would go unseen.
    """

    __tablename__ = "contents"

    cid: Mapped[str] = mapped_column(String(CID_LENGTH), primary_key=True)
    state: Mapped[str] = mapped_column(String(12), default=PINNED)
    generation: Mapped[int] = mapped_column(default=1)
    pinned_too: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Of what a bundle covers: the node may have a pin of its own on it as well."""
    lease_token: Mapped[uuid.UUID | None] = mapped_column()
    lease_until: Mapped[datetime | None] = mapped_column()
    pin_root_id: Mapped[str] = mapped_column(String(CID_LENGTH))
    dag_size: Mapped[int] = mapped_column(BigInteger)
    """Cumulative size of the DAG on the node in bytes."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    unreferenced_at: Mapped[datetime | None] = mapped_column()
    thinned_at: Mapped[datetime | None] = mapped_column()
    """Of a bundle most of which is dead: when what lives in it is to get pins of its own."""

    __table_args__ = (
        CheckConstraint("state IN ('pinned', 'unpinning', 'absent')", name="state"),
        Index("ix_contents_pin_root_id", "pin_root_id"),
        Index(
            "ix_contents_unreferenced_at",
            "unreferenced_at",
            postgresql_where=text("unreferenced_at IS NOT NULL"),
            sqlite_where=text("unreferenced_at IS NOT NULL"),
        ),
        Index(
            "ix_contents_unpinning",
            "lease_until",
            postgresql_where=text("state = 'unpinning'"),
            sqlite_where=text("state = 'unpinning'"),
        ),
        Index(
            "ix_contents_thinned_at",
            "thinned_at",
            postgresql_where=text("thinned_at IS NOT NULL"),
            sqlite_where=text("thinned_at IS NOT NULL"),
        ),
    )


class Holding(Base):
    """That a user holds a content, by how many references, and for how many bytes they are
    charged once."""

    __tablename__ = "holdings"

    user_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    cid: Mapped[str] = mapped_column(ForeignKey("contents.cid"), primary_key=True)
    references: Mapped[int] = mapped_column("reference_count", BigInteger)
    bytes: Mapped[int] = mapped_column("charged_bytes", BigInteger)

    __table_args__ = (
        CheckConstraint("reference_count > 0", name="reference_count"),
        Index("ix_holdings_cid", "cid"),
    )


class Lease(Base):
    """Work in flight that will pin something: committed before its first byte, renewed while it
    runs.

    Its id is in the name of every pin that the work makes, so that a pin left by a crash is told
    from other people's pins: ours by its name, an orphan by its dead lease. A lease whose work has
    failed stays, dead and with what it reserves, until `worker/leftovers.py` has removed what was
    pinned under it.
    """

    __tablename__ = "leases"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[str] = mapped_column(String(16))
    user_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    key_id: Mapped[uuid.UUID | None] = mapped_column()
    token: Mapped[uuid.UUID] = mapped_column(default=new_id)
    lease_until: Mapped[datetime] = mapped_column(index=True)
    reserved_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Quota taken for what may still come, or for what a failure has left on the node."""
    swept_at: Mapped[datetime | None] = mapped_column()
    """Of a dead one: when the node's pins were first looked through for its name."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    __table_args__ = (Index("ix_leases_user_id", "user_id"),)


class LeasedPin(Base):
    """A content that is known to be pinned on the node under a lease whose work has failed."""

    __tablename__ = "leased_pins"

    lease_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("leases.id", ondelete="CASCADE"), primary_key=True
    )
    cid: Mapped[str] = mapped_column(String(CID_LENGTH), primary_key=True)


class Deployment(Base):
    """The one row that names this deployment; every pin of ours carries the name."""

    __tablename__ = "deployment"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(36))
    delegates: Mapped[list[str] | None] = mapped_column()
    """The node's addresses when it was last asked, each ending in its identity."""
    node_id: Mapped[str | None] = mapped_column(String(NODE_ID_LENGTH))
    """The libp2p identity of a node that somebody else runs; None before it was used."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)


class Maintenance(Base):
    """A kind of work that goes over the whole node, one at a time; how the last one ended.

    While its lease lives it is under way: everyone who pins asks this row first.
    """

    __tablename__ = "maintenance"

    kind: Mapped[str] = mapped_column(String(8), primary_key=True)
    token: Mapped[uuid.UUID | None] = mapped_column()
    lease_until: Mapped[datetime | None] = mapped_column()
    started_at: Mapped[datetime | None] = mapped_column()
    finished_at: Mapped[datetime | None] = mapped_column()
    result: Mapped[dict[str, Any] | None] = mapped_column()


class QuarantinedPin(Base):
    """A pin by a name of ours that no row tells of: seen on the node by `fsck`, and ended only
    when it is seen again long after. The database may be older than the node."""

    __tablename__ = "quarantined_pins"

    cid: Mapped[str] = mapped_column(String(CID_LENGTH), primary_key=True)
    job: Mapped[uuid.UUID] = mapped_column()
    """What its name says that it was made for: a pin by another name is another pin."""
    run: Mapped[uuid.UUID] = mapped_column()
    """The last check that has seen it."""
    first_seen_at: Mapped[datetime] = mapped_column()
    """By the database's clock."""
