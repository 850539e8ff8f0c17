"""The gateway's deny list: content that it must not serve, whoever keeps it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, String
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.content import CID_LENGTH
from on_api.core.models.database import Base, utc_now

REASON_LENGTH = 500


class DeniedCid(Base):
    """One entry of the deny list. Matched by the hash alone: `hash_cid` is the CID with the codec
    `raw`, whatever codec a request uses."""

    __tablename__ = "denied_cids"

    hash_cid: Mapped[str] = mapped_column(String(CID_LENGTH), primary_key=True)
    cid: Mapped[str] = mapped_column(String(CID_LENGTH))
    """The CID that was denied, normalised."""
    status: Mapped[int] = mapped_column()
    """Status code of the answer: 410 or 451."""
    reason: Mapped[str | None] = mapped_column(String(REASON_LENGTH))
    """Reason for the operator; not shown to clients."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    __table_args__ = (CheckConstraint("status IN (410, 451)", name="status"),)
