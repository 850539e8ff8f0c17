"""Counters of wrong passwords, shared by all processes."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.database import Base, utc_now
from on_api.core.models.user import CLIENT_LENGTH, USERNAME_LENGTH

SUBJECT_LENGTH = USERNAME_LENGTH + 16
EVERYWHERE = ""
"""Value of `network` in the row that counts the wrong passwords of all networks."""


class PasswordThrottle(Base):
    """Wrong passwords for one subject (an account, an unknown username, a link, a private file)
    from one network."""

    __tablename__ = "password_throttles"

    subject: Mapped[str] = mapped_column(String(SUBJECT_LENGTH), primary_key=True)
    network: Mapped[str] = mapped_column(String(CLIENT_LENGTH), primary_key=True)
    """An IPv4 address, an IPv6 network, or `EVERYWHERE`."""
    failures: Mapped[int] = mapped_column(default=0)
    blocked_until: Mapped[datetime | None] = mapped_column()
    """Moment before which no password is checked."""
    right_at: Mapped[datetime | None] = mapped_column()
    """Moment at which the right password last came from this network."""
    updated_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
