"""Users, their usage and encryption identities, and the audit log of actions on them."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from on_api.core.models.database import Base, new_id, utc_now

USERNAME_LENGTH = 64
CLIENT_LENGTH = 64
"""Characters of an address; an IPv6 one with its zone has 39 and more."""
USERNAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}$"


class User(Base):
    """An account. `username` is stored in lower case; `deleted_at` is set while its removal is
    under way."""

    __tablename__ = "users"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    username: Mapped[str] = mapped_column(String(USERNAME_LENGTH), unique=True)
    password_hash: Mapped[str | None] = mapped_column(String(255))
    is_admin: Mapped[bool] = mapped_column(default=False)
    active: Mapped[bool] = mapped_column(default=True)
    storage_quota: Mapped[int | None] = mapped_column(BigInteger)
    """Quota in bytes; None: no limit."""
    egress_budget: Mapped[int | None] = mapped_column(BigInteger)
    """Budget in bytes per calendar month; None: no limit."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
    deleted_at: Mapped[datetime | None] = mapped_column()

    usage: Mapped[UserUsage] = relationship(
        back_populates="user",
        cascade="all, delete-orphan",
        passive_deletes=True,
        single_parent=True,
    )

    __table_args__ = (
        Index(
            "ix_users_deleted_at",
            "deleted_at",
            postgresql_where=text("deleted_at IS NOT NULL"),
            sqlite_where=text("deleted_at IS NOT NULL"),
        ),
        Index(
            "ix_users_admins",
            "id",
            postgresql_where=text("is_admin"),
            sqlite_where=text("is_admin"),
        ),
    )


class UserUsage(Base):
    """Counters of one user, updated in the transaction that changes what they count."""

    __tablename__ = "user_usage"

    user_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    file_count: Mapped[int] = mapped_column(BigInteger, default=0)
    pinned_count: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Number of pins that are `pinned`."""
    storage_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Sum of the user's holdings in bytes."""
    reserved_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of quota that the user's live leases have reserved."""
    last_created_at: Mapped[datetime | None] = mapped_column()
    """The newest `created_at` given to one of the user's references: the next one is later."""

    user: Mapped[User] = relationship(back_populates="usage")


class Identity(Base):
    """An X25519 identity for private files; its secret half is sealed under the master secret."""

    __tablename__ = "identities"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), index=True
    )
    recipient: Mapped[str] = mapped_column(String(128))
    wrapped_secret: Mapped[bytes] = mapped_column(LargeBinary)
    secret_version: Mapped[int] = mapped_column()
    active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    __table_args__ = (
        Index(
            "ix_identities_one_active",
            "user_id",
            unique=True,
            postgresql_where=text("active"),
            sqlite_where=text("active"),
        ),
    )


class AuditEvent(Base):
    """One line of the audit log. Its ids are no foreign keys: the line outlives the objects that it
    names."""

    __tablename__ = "audit_events"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    actor_id: Mapped[uuid.UUID | None] = mapped_column()
    actor_key_id: Mapped[uuid.UUID | None] = mapped_column()
    action: Mapped[str] = mapped_column(String(64))
    target_type: Mapped[str] = mapped_column(String(32))
    target_id: Mapped[uuid.UUID | None] = mapped_column()
    client: Mapped[str | None] = mapped_column(String(CLIENT_LENGTH))
    """The client's address."""
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)

    __table_args__ = (
        Index("ix_audit_events_created_at", "created_at", "id"),
        Index("ix_audit_events_actor_id", "actor_id", "created_at", "id"),
        Index("ix_audit_events_action", "action", "created_at", "id"),
    )
