"""Blocks of private files, which the gateway serves to no client, whatever its policy."""

from __future__ import annotations

from sqlalchemy import Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.content import CID_LENGTH
from on_api.core.models.database import Base


class PrivateBlock(Base):
    """One block of a private file that has several, its root included, by the SHA-256 in each of
    its CIDs. The row outlives the file, until the node has collected its blocks."""

    __tablename__ = "private_blocks"

    digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    root_cid: Mapped[str] = mapped_column(String(CID_LENGTH))

    __table_args__ = (Index("ix_private_blocks_root_cid", "root_cid"),)
