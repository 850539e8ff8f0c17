"""when the next pin is due

Revision ID: 0019
Revises: 0018
Created: 2026-11-29 12:15:00.000000+00:00
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op

revision: str = "0019"
down_revision: str | None = "0018"
branch_labels: str | None = None
depends_on: str | None = None

_UNDER_WAY = "status IN ('queued', 'pinning')"


def upgrade() -> None:
    op.create_index(
        "ix_pins_due_at",
        "pins",
        ["needs_fetch", "due_at"],
        postgresql_where=sa.text(_UNDER_WAY),
        sqlite_where=sa.text(_UNDER_WAY),
    )


def downgrade() -> None:
    op.drop_index("ix_pins_due_at", table_name="pins")
