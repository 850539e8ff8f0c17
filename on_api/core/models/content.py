"""Content on the node, one row per DAG; its holders; and the leases of the work that puts it
there."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String, false, text
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.database import Base, new_id, utc_now

CID_LENGTH = 128
NODE_ID_LENGTH = 128
"""Characters of a libp2p identity; today's have 46 to 62."""

PINNED = "pinned"
UNPINNING = "unpinning"
ABSENT = "absent"


class Content(Base):
    """One DAG, under its normalised CID. Its state goes `pinned → unpinning(lease_token) → absent`
    and back to `pinned`.

    `pin_root_id` names the pin that covers it: itself or, while it is `pinned`, a bundle, which is
    a content as well. `generation` rises each time its removal begins. `unreferenced_at` is set
    while it has no references. A change of its holdings locks the row. A row is never deleted:
    without it a removal in between would go unseen.
    """

    __tablename__ = "contents"

    cid: Mapped[str] = mapped_column(String(CID_LENGTH), primary_key=True)
    state: Mapped[str] = mapped_column(String(12), default=PINNED)
    generation: Mapped[int] = mapped_column(default=1)
    pinned_too: Mapped[bool] = mapped_column(default=False, server_default=false())
    """A bundle's member on which the node may have a pin of its own as well."""
    lease_token: Mapped[uuid.UUID | None] = mapped_column()
    lease_until: Mapped[datetime | None] = mapped_column()
    pin_root_id: Mapped[str] = mapped_column(String(CID_LENGTH))
    dag_size: Mapped[int] = mapped_column(BigInteger)
    """Cumulative size of the DAG on the node in bytes."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    unreferenced_at: Mapped[datetime | None] = mapped_column()
    thinned_at: Mapped[datetime | None] = mapped_column()
    """Moment at which a mostly dead bundle is to be dissolved: its living members get pins of their
    own."""

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
    """One user's holding of one content: the number of references, and the bytes that they are
    charged once for all of them."""

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
    """Work in flight that will pin something. Committed before its first byte, renewed while it
    runs.

    Its id is in the name of every pin that the work makes. So a pin of ours is told from other
    people's by its name, and one that a crash has left behind by its dead lease. A lease whose work
    has failed stays, dead and with what it reserves, until `worker/leftovers.py` has removed what
    was pinned under it.
    """

    __tablename__ = "leases"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[str] = mapped_column(String(16))
    user_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    key_id: Mapped[uuid.UUID | None] = mapped_column()
    token: Mapped[uuid.UUID] = mapped_column(default=new_id)
    lease_until: Mapped[datetime] = mapped_column(index=True)
    reserved_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of quota taken for data that may still come, or that a failure has left on the node."""
    swept_at: Mapped[datetime | None] = mapped_column()
    """Moment at which the node's pins were first searched for this lease's name; set on dead leases
    only."""
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
    """Libp2p identity of a node that the operator runs; None before it was used."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)


class Maintenance(Base):
    """A kind of work on the whole node, of which one runs at a time, and the result of the last
    run.

    It is under way while its lease lives. Every process that pins checks this row first.
    """

    __tablename__ = "maintenance"

    kind: Mapped[str] = mapped_column(String(8), primary_key=True)
    token: Mapped[uuid.UUID | None] = mapped_column()
    lease_until: Mapped[datetime | None] = mapped_column()
    started_at: Mapped[datetime | None] = mapped_column()
    finished_at: Mapped[datetime | None] = mapped_column()
    result: Mapped[dict[str, Any] | None] = mapped_column()


class QuarantinedPin(Base):
    """A pin that has a name of ours but no row. `fsck` records it when it first sees it on the
    node, and ends it only when it sees it again long after: the database may be older than the
    node."""

    __tablename__ = "quarantined_pins"

    cid: Mapped[str] = mapped_column(String(CID_LENGTH), primary_key=True)
    job: Mapped[uuid.UUID] = mapped_column()
    """The job in the pin's name; a pin by another name is another pin."""
    run: Mapped[uuid.UUID] = mapped_column()
    """Id of the last check that saw it."""
    first_seen_at: Mapped[datetime] = mapped_column()
    """Moment by the database's clock."""
