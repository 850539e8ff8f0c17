"""password throttles

Revision ID: 0017
Revises: 0016
Created: 2026-11-28 17:30:00.000000+00:00
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "password_throttles",
        sa.Column("subject", sa.String(length=80), nullable=False),
        sa.Column("network", sa.String(length=64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("blocked_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("right_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("subject", "network", name=op.f("pk_password_throttles")),
    )
    op.create_index("ix_password_throttles_updated_at", "password_throttles", ["updated_at"])
    # Pauses under way end with the update: they were everybody's, the owner's too.
    op.drop_table("login_throttles")
    op.drop_column("shares", "failures")
    op.drop_column("shares", "blocked_until")


def downgrade() -> None:
    op.add_column("shares", sa.Column("failures", sa.Integer(), server_default="0", nullable=False))
    op.add_column("shares", sa.Column("blocked_until", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "login_throttles",
        sa.Column("username", sa.String(length=64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("blocked_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("username", name=op.f("pk_login_throttles")),
    )
    op.create_index("ix_login_throttles_updated_at", "login_throttles", ["updated_at"])
    op.drop_table("password_throttles")
