"""indexes and totals for many rows

Revision ID: 0010
Revises: 0009
Created: 2026-11-24 14:50:12.114862+00:00
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op
from on_api.core.models.downgrades import refuse_loss

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | None = None
depends_on: str | None = None

_PARTIAL = (
    ("ix_contents_unpinning", "contents", ["lease_until"], "state = 'unpinning'"),
    ("ix_pins_leased", "pins", ["cid", "lease_until"], "lease_until IS NOT NULL"),
    ("ix_users_admins", "users", ["id"], "is_admin"),
)
_NEW = (
    (
        "ix_files_user_id_name_created_at",
        "files",
        ["user_id", "name", "created_at", "id"],
    ),
    (
        "ix_files_user_id_cid_created_at",
        "files",
        ["user_id", "cid", "created_at", "id"],
    ),
    (
        "ix_pins_user_id_name_created_at",
        "pins",
        ["user_id", "name", "created_at", "id"],
    ),
    ("ix_pins_user_id_cid_created_at", "pins", ["user_id", "cid", "created_at", "id"]),
    ("ix_audit_events_action", "audit_events", ["action", "created_at", "id"]),
)


_COUNTS = ("requests", "unchanged", "failed", "bytes_out", "bytes_in")
_TOTALS = f"""INSERT INTO traffic_totals (period, kind, {", ".join(_COUNTS)})
SELECT period, kind, {", ".join(f"sum({name})" for name in _COUNTS)}
FROM traffic GROUP BY period, kind"""  # noqa: S608 (names of our own)


def upgrade() -> None:
    op.create_table(
        "traffic_totals",
        sa.Column("period", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _COUNTS),
        sa.PrimaryKeyConstraint("period", "kind", name=op.f("pk_traffic_totals")),
    )
    # Days and months as what they are by now: they stay at their first hour.
    op.execute(_TOTALS)
    for name, table, columns, where in _PARTIAL:
        op.create_index(
            name, table, columns, postgresql_where=sa.text(where), sqlite_where=sa.text(where)
        )
    for name, table, columns in _NEW:
        op.create_index(name, table, columns)
    op.drop_index("ix_import_items_import_id_status_created_at", table_name="import_items")
    op.create_index(
        "ix_import_items_of_status", "import_items", ["import_id", "status", "created_at", "id"]
    )
    op.drop_index("ix_files_user_id_name", table_name="files")
    op.drop_index("ix_pins_user_id_name", table_name="pins")
    op.drop_index("ix_audit_events_actor_id", table_name="audit_events")
    op.create_index("ix_audit_events_actor_id", "audit_events", ["actor_id", "created_at", "id"])


def downgrade() -> None:
    refuse_loss(revision, "traffic_totals")
    op.drop_table("traffic_totals")
    op.drop_index("ix_audit_events_actor_id", table_name="audit_events")
    op.create_index("ix_audit_events_actor_id", "audit_events", ["actor_id", "created_at"])
    op.create_index("ix_pins_user_id_name", "pins", ["user_id", "name"])
    op.drop_index("ix_import_items_of_status", table_name="import_items")
    op.create_index(
        "ix_import_items_import_id_status_created_at",
        "import_items",
        ["import_id", "status", "created_at"],
    )
    op.create_index("ix_files_user_id_name", "files", ["user_id", "name"])
    for name, table, _ in _NEW:
        op.drop_index(name, table_name=table)
    for name, table, _, where in _PARTIAL:
        op.drop_index(name, table_name=table, postgresql_where=sa.text(where))
