"""bundles

Revision ID: 0009
Revises: 0008
Created: 2026-11-24 14:40:12.118201+00:00
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op
from on_api.core.models.downgrades import Loss, refuse_loss

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column(
        "contents",
        sa.Column("pinned_too", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.add_column("contents", sa.Column("thinned_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_contents_thinned_at",
        "contents",
        ["thinned_at"],
        postgresql_where=sa.text("thinned_at IS NOT NULL"),
        sqlite_where=sa.text("thinned_at IS NOT NULL"),
    )


def downgrade() -> None:
    refuse_loss(
        revision,
        Loss("contents.pinned_too", "pinned_too OR pin_root_id <> cid"),
        "contents.thinned_at",
    )
    op.drop_index(
        "ix_contents_thinned_at",
        table_name="contents",
        postgresql_where=sa.text("thinned_at IS NOT NULL"),
        sqlite_where=sa.text("thinned_at IS NOT NULL"),
    )
    op.drop_column("contents", "thinned_at")
    op.drop_column("contents", "pinned_too")
