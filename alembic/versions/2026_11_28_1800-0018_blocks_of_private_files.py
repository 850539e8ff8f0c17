"""blocks of private files

Revision ID: 0018
Revises: 0017
Created: 2026-11-28 18:00:14.141421+00:00
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels: str | None = None
depends_on: str | None = None

_UNKNOWN = "visibility = 'private' AND blocks_known IS NULL AND sealed_size > 262144"


def upgrade() -> None:
    op.create_table(
        "private_blocks",
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("root_cid", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_private_blocks")),
    )
    op.create_index("ix_private_blocks_root_cid", "private_blocks", ["root_cid"])
    op.add_column("files", sa.Column("blocks_known", sa.Boolean(), nullable=True))
    op.create_index(
        "ix_files_blocks_unknown",
        "files",
        ["cid"],
        postgresql_where=sa.text(_UNKNOWN),
        sqlite_where=sa.text(_UNKNOWN),
    )


def downgrade() -> None:
    op.drop_index("ix_files_blocks_unknown", table_name="files")
    op.drop_column("files", "blocks_known")
    op.drop_table("private_blocks")
