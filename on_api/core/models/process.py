"""The master secret in use, and the processes that are up: what a rotation of the secret has to
know."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import CheckConstraint, String
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.database import Base, JSONDocument, new_id, utc_now

HOST_LENGTH = 255


class SecretInUse(Base):
    """The one row that names, by its version, the master secret that seals new rows.

    A transaction that seals reads it under a shared lock until its commit, so that after a change
    of this row nothing more is sealed under the previous secret.
    """

    __tablename__ = "secret_in_use"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int] = mapped_column()

    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)


class Process(Base):
    """A process that is up. It renews its row every few seconds, and counts as dead when the row is
    old by the database's clock."""

    __tablename__ = "processes"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    host: Mapped[str] = mapped_column(String(HOST_LENGTH))
    pid: Mapped[int] = mapped_column()
    seen_at: Mapped[datetime] = mapped_column(default=utc_now)
    used_version: Mapped[int | None] = mapped_column()
    """Version of the master secret that the process takes to be in use; None: it has none."""
    secret_versions: Mapped[list[int]] = mapped_column(JSONDocument)
    """Versions of all master secrets that the process has."""
