"""A large instance, made by SQL in the time of a coffee: what uploading a million files would take
days for."""

from __future__ import annotations

from sqlalchemy import create_engine, text

from benchmarks.stage import Sizes

_CONTENTS = 1000
_STATEMENTS = (
    """INSERT INTO users (id, username, is_admin, active, created_at)
    SELECT gen_random_uuid(), 'seeded-' || n, false, true, now()
    FROM generate_series(2, :users) n""",
    """INSERT INTO contents (cid, state, generation, pin_root_id, dag_size, created_at)
    SELECT 'seeded-' || n, 'pinned', 1, 'seeded-' || n, 8192, now()
    FROM generate_series(0, :contents - 1) n""",
    # The one user who was there has a tenth of all files; the others share the rest.
    """WITH people AS (SELECT id, row_number() OVER (ORDER BY created_at) - 1 AS place FROM users)
    INSERT INTO files
        (id, user_id, cid, name, size, media_type, sha256, visibility, meta, created_at)
    SELECT gen_random_uuid(), people.id, 'seeded-' || n % :contents, 'file ' || n, 8192,
        'application/octet-stream', '\\x00', 'public', '{}',
        timestamptz '2026-01-01 00:00Z' + n * interval '1 microsecond'
    FROM generate_series(1, :files) n
    JOIN people ON place = CASE WHEN n % 10 = 0 THEN 0 ELSE 1 + n % (:users - 1) END""",
    """INSERT INTO holdings (user_id, cid, reference_count, charged_bytes)
    SELECT user_id, cid, count(*), 8192 FROM files GROUP BY user_id, cid""",
    """INSERT INTO user_usage (user_id, file_count, storage_bytes, reserved_bytes)
    SELECT user_id, count(*), 8192 * count(DISTINCT cid), 0 FROM files GROUP BY user_id
    ON CONFLICT (user_id) DO UPDATE
        SET file_count = excluded.file_count, storage_bytes = excluded.storage_bytes""",
)


def seed(database_url: str, sizes: Sizes) -> None:
    """Fill a PostgreSQL in which there is one user: it then has a tenth of `sizes.files`."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        for statement in _STATEMENTS:
            names = {"users": sizes.users, "files": sizes.files, "contents": _CONTENTS}
            used = {k: v for k, v in names.items() if f":{k}" in statement}
            connection.execute(text(statement), used)
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()
