"""quarantine of unknown pins, notes of imports

Revision ID: 0014
Revises: 0013
Created: 2026-11-28 17:30:00.000000+00:00
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op
from on_api.core.models.downgrades import refuse_loss

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "quarantined_pins",
        sa.Column("cid", sa.String(length=128), nullable=False),
        sa.Column("job", sa.Uuid(), nullable=False),
        sa.Column("run", sa.Uuid(), nullable=False),
        sa.Column("first_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("cid", name=op.f("pk_quarantined_pins")),
    )
    op.add_column("import_items", sa.Column("note", sa.String(length=500), nullable=True))


def downgrade() -> None:
    refuse_loss(revision, "quarantined_pins", "import_items.note")
    op.drop_column("import_items", "note")
    op.drop_table("quarantined_pins")
