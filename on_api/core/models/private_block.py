"""Blocks of private files: what the gateway serves to nobody, whatever its policy."""

from __future__ import annotations

from sqlalchemy import Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.content import CID_LENGTH
from on_api.core.models.database import Base


class PrivateBlock(Base):
    """One block of a private file of several blocks, its root among them, by the SHA-256 that is in
    each of its CIDs. It outlives the file, until its blocks are collected."""

    __tablename__ = "private_blocks"

    digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    root_cid: Mapped[str] = mapped_column(String(CID_LENGTH))

    __table_args__ = (Index("ix_private_blocks_root_cid", "root_cid"),)
