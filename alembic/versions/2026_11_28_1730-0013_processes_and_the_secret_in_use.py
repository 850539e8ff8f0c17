"""processes and the secret in use

Revision ID: 0013
Revises: 0012
Created: 2026-11-28 17:30:12.118204+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op
from on_api.core.models.downgrades import Loss, refuse_loss

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "secret_in_use",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_secret_in_use_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_secret_in_use")),
    )
    op.create_table(
        "processes",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_version", sa.Integer(), nullable=True),
        sa.Column(
            "secret_versions",
            sa.JSON().with_variant(postgresql.JSONB(), "postgresql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_processes")),
    )


def downgrade() -> None:
    refuse_loss(revision, Loss("secret_in_use", "version <> 1"))
    op.drop_table("processes")
    op.drop_table("secret_in_use")
