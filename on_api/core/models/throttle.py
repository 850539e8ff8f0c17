"""Wrong passwords, counted over all processes."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.database import Base, utc_now
from on_api.core.models.user import CLIENT_LENGTH, USERNAME_LENGTH

SUBJECT_LENGTH = USERNAME_LENGTH + 16
EVERYWHERE = ""
"""In place of a network: the row that counts those of all networks."""


class PasswordThrottle(Base):
    """Wrong passwords for one subject (an account, a name that nobody has, a link, a private file)
    from one network."""

    __tablename__ = "password_throttles"

    subject: Mapped[str] = mapped_column(String(SUBJECT_LENGTH), primary_key=True)
    network: Mapped[str] = mapped_column(String(CLIENT_LENGTH), primary_key=True)
    """An address, or an IPv6 network; or `EVERYWHERE`."""
    failures: Mapped[int] = mapped_column(default=0)
    blocked_until: Mapped[datetime | None] = mapped_column()
    """No password is tried before that."""
    right_at: Mapped[datetime | None] = mapped_column()
    """When the right password last came from there."""
    updated_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
