"""bytes left of downloads

Revision ID: 0012
Revises: 0011
Created: 2026-11-28 17:30:02.718281+00:00
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op
from on_api.core.models.downgrades import refuse_loss

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    # Nothing is known of downloads before: the next request for all of a file begins one.
    op.add_column("shares", sa.Column("left_bytes", sa.BigInteger(), nullable=True))
    op.add_column("shares", sa.Column("whole_begun", sa.Boolean(), nullable=True))


def downgrade() -> None:
    refuse_loss(revision, "shares.left_bytes", "shares.whole_begun")
    op.drop_column("shares", "whole_begun")
    op.drop_column("shares", "left_bytes")
