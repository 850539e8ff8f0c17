"""what failed uploads leave on the node

Revision ID: 0011
Revises: 0010
Created: 2026-11-28 17:40:11.402117+00:00
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op
from on_api.core.models.downgrades import refuse_loss

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("leases", sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "leased_pins",
        sa.Column("lease_id", sa.Uuid(), nullable=False),
        sa.Column("cid", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(
            ["lease_id"],
            ["leases.id"],
            name=op.f("fk_leased_pins_lease_id_leases"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("lease_id", "cid", name=op.f("pk_leased_pins")),
    )


def downgrade() -> None:
    refuse_loss(revision, "leased_pins", "leases.swept_at")
    op.drop_table("leased_pins")
    op.drop_column("leases", "swept_at")
