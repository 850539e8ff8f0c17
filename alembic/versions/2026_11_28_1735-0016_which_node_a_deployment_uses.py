"""which node a deployment uses

Revision ID: 0016
Revises: 0014
Created: 2026-11-28 17:35:00.000000+00:00
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op
from on_api.core.models.downgrades import refuse_loss

revision: str = "0016"
down_revision: str | None = "0014"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("deployment", sa.Column("node_id", sa.String(length=128), nullable=True))


def downgrade() -> None:
    refuse_loss(revision, "deployment.node_id")
    op.drop_column("deployment", "node_id")
