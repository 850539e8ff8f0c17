"""A large instance in PostgreSQL, made by its own SQL in minutes: what uploading a million files
would take days for. Consistent: `on-api fsck` finds nothing wrong in its ledger.

Skewed as real ones are. User 0 (whoever was there before) has a tenth of everything; user 1 has a
few hundred rows of each kind, at every scale, so that what a request of theirs costs may be
compared; the others share the rest, some few of them having much of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, create_engine, text

REGULAR = "seeded-1"
"""The name of user 1."""
POPULAR = 0
"""The number of the content that one file in twenty refers to."""

_ALPHABET = "'0123456789abcdef', 'abcdefghijklmnop'"


@dataclass(frozen=True)
class Scale:
    """How much of everything. The rest follows from the files: a pin for each five, an event and an
    audit line for each two, a share for each ten, imports with an item for each two."""

    files: int = 1_000_000
    users: int = 1000
    traffic: int = 10_000_000
    """Rows: hours, days and months."""


SMALL = Scale(files=10_000, users=100, traffic=100_000)

# Inlined by PostgreSQL: SQL functions of one expression each.
_FUNCTIONS = (
    # A CIDv1 (raw, sha2-256) in base32, of a hash that nothing has.
    f"""CREATE FUNCTION pg_temp.cid_of(n bigint) RETURNS text IMMUTABLE LANGUAGE sql AS $$
    SELECT 'bafkreia' || translate(lpad(to_hex(n), 50, '0'), {_ALPHABET}) || 'a' $$""",
    # Rising, so that rows come in the order of their keys: in a fraction of the time.
    """CREATE FUNCTION pg_temp.id_of(kind text, n bigint) RETURNS uuid IMMUTABLE LANGUAGE sql AS $$
    SELECT (substr(md5(kind), 1, 16) || lpad(to_hex(n), 16, '0'))::uuid $$""",
    # The place of a row's owner; `total` rows of its kind are made.
    """CREATE FUNCTION pg_temp.place_of(n bigint, total bigint) RETURNS int IMMUTABLE LANGUAGE sql
    AS $$ SELECT CASE
        WHEN n % 10 = 0 THEN 0
        WHEN n % greatest(total / 200, 2) = 1 THEN 1
        ELSE 2 + floor((:users - 2) * power((hashint8(n) & 65535) / 65536.0, 3))::int END $$""",
    # Which content a file refers to.
    """CREATE FUNCTION pg_temp.content_of(n bigint) RETURNS bigint IMMUTABLE LANGUAGE sql AS $$
    SELECT CASE WHEN n % 20 = 3 OR n % (greatest(:files / 200, 2) * 4) = 1 THEN 0 ELSE n END $$""",
)

_ROWS: dict[str, str] = {
    "users": """INSERT INTO users (id, username, is_admin, active, created_at)
    SELECT pg_temp.id_of('user', n), 'seeded-' || n, false, true,
        timestamptz '2025-01-01 00:00Z' + n * interval '1 minute'
    FROM generate_series(1, :users - 1) n""",
    # For joins by place.
    "people": """CREATE TEMPORARY TABLE people AS
    SELECT 0 AS place, (SELECT id FROM users WHERE username NOT LIKE 'seeded-%'
        ORDER BY created_at LIMIT 1) AS id
    UNION ALL SELECT n, pg_temp.id_of('user', n) FROM generate_series(1, :users - 1) n""",
    # Of what nobody holds any more, some is in its time of grace and the rest gone.
    "contents": """INSERT INTO contents
        (cid, state, generation, pin_root_id, dag_size, created_at, unreferenced_at)
    SELECT pg_temp.cid_of(n), CASE WHEN n > :files + :gone THEN 'absent' ELSE 'pinned' END, 1,
        pg_temp.cid_of(n), 8192, timestamptz '2025-01-01 00:00Z',
        CASE WHEN n > :files AND n <= :files + :gone
            THEN CASE WHEN n <= :files + 20 THEN now() - interval '30 days' ELSE now() END END
    FROM generate_series(0, :files + 2 * :gone) n WHERE pg_temp.content_of(n) = n OR n > :files""",
    "files": """INSERT INTO files
        (id, user_id, cid, name, size, media_type, sha256, visibility, meta, created_at)
    SELECT pg_temp.id_of('file', n), people.id, pg_temp.cid_of(pg_temp.content_of(n)),
        'file ' || n % 1000, 8192, CASE WHEN n % 7 = 0 THEN 'image/png' ELSE 'text/plain' END,
        sha256(n::text::bytea), 'public',
        CASE WHEN n % 11 = 0 THEN jsonb_build_object('album', n % 50) ELSE '{}' END,
        timestamptz '2026-01-01 00:00Z' + n * interval '20 seconds'
    FROM generate_series(1, :files) n JOIN people ON place = pg_temp.place_of(n, :files)""",
    # Of the queue a tenth is due at most, and a hundred rows of one who asked for much.
    "pins": """INSERT INTO pins
        (id, user_id, cid, source_cid, name, meta, origins, status, created_at, due_at, deadline_at,
         attempts, needs_fetch, dag_size)
    SELECT pg_temp.id_of('pin', n), people.id, cid, cid, 'pin ' || n % 1000,
        CASE WHEN n % 11 = 0 THEN jsonb_build_object('app', 'a' || n % 50) END, '[]',
        CASE WHEN n % 20 = 9 THEN 'failed' WHEN n % 20 < 2 THEN 'queued' ELSE 'pinned' END,
        timestamptz '2026-01-01 00:00Z' + n * interval '100 seconds',
        now() + n * interval '1 millisecond'
            + CASE WHEN n % 20 = 1 OR n <= 100 THEN interval '-2 hours' ELSE interval '1 day' END,
        now() + interval '7 days', 1, n % 2 = 0, 8192
    FROM (SELECT n, pg_temp.cid_of(pg_temp.content_of(n * 5 + n % 5))
            || '' AS cid FROM generate_series(1, :pins) n) each
    JOIN people ON place = pg_temp.place_of(n, :pins)""",
    "holdings": """INSERT INTO holdings (user_id, cid, reference_count, charged_bytes)
    SELECT user_id, cid, count(*), 8192 FROM (
        SELECT user_id, cid FROM files
        UNION ALL SELECT user_id, cid FROM pins WHERE status = 'pinned') every_reference
    GROUP BY user_id, cid ORDER BY user_id, cid""",
    "user_usage": """INSERT INTO user_usage
        (user_id, file_count, pinned_count, storage_bytes, reserved_bytes, last_created_at)
    SELECT id, coalesce(files, 0), coalesce(pinned, 0), coalesce(bytes, 0), 0,
        timestamptz '2026-11-01 00:00Z'
    FROM people
    LEFT JOIN (SELECT user_id, count(*) AS files FROM files GROUP BY user_id) f ON f.user_id = id
    LEFT JOIN (SELECT user_id, count(*) AS pinned FROM pins WHERE status = 'pinned'
        GROUP BY user_id) p ON p.user_id = id
    LEFT JOIN (SELECT user_id, sum(charged_bytes) AS bytes FROM holdings
        GROUP BY user_id) h ON h.user_id = id
    ON CONFLICT (user_id) DO UPDATE SET file_count = excluded.file_count,
        pinned_count = excluded.pinned_count, storage_bytes = excluded.storage_bytes""",
    "keys": """INSERT INTO keys (id, user_id, kind, name, prefix, digest, secret_version, scopes,
        uses, bytes_used, created_at, expires_at, revoked_at)
    SELECT pg_temp.id_of('key', n), people.id, CASE WHEN n % 3 = 0 THEN 'token' ELSE 'key' END,
        'key ' || n, 'onapi_' || n % 1000, sha256(('key ' || n)::bytea), :secret,
        '["files:read"]', 0, 0,
        timestamptz '2026-01-01 00:00Z' + n * interval '20 seconds',
        CASE WHEN n % 3 = 0 THEN now() + interval '1 hour' END,
        CASE WHEN n % 3 = 1 THEN now() END
    FROM generate_series(1, :keys) n JOIN people ON place = pg_temp.place_of(n, :keys)""",
    "shares": """INSERT INTO shares (id, user_id, file_id, token_hash, prefix, downloads,
        sent_bytes, created_at, revoked_at)
    SELECT pg_temp.id_of('share', n), user_id, id, sha256(('share ' || n)::bytea), 'seeded', 0, 0,
        created_at, CASE WHEN n % 5 = 0 THEN now() END
    FROM generate_series(1, :files / 10) n JOIN files ON id = pg_temp.id_of('file', n * 10 - n % 3)
    """,
    "events": """INSERT INTO events (seq, user_id, kind, subject_id, data, created_at)
    SELECT n, people.id, 'file.created', pg_temp.id_of('file', n), '{}', now() - interval '1 day'
    FROM generate_series(1, :files / 2) n JOIN people ON place = pg_temp.place_of(n, :files / 2)""",
    "audit_events": """INSERT INTO audit_events
        (id, created_at, actor_id, action, target_type, client, details)
    SELECT pg_temp.id_of('audit', n), timestamptz '2026-01-01 00:00Z' + n * interval '40 seconds',
        people.id, CASE WHEN n % 5000 = 1 THEN 'user.rename' ELSE 'login' END, 'user', '::1', '{}'
    FROM generate_series(1, :files / 2) n JOIN people ON place = pg_temp.place_of(n, :files / 2)""",
    "imports": """INSERT INTO imports (id, user_id, kind, source, route, status, delegates, total,
        done, failed, skipped, moved_bytes, known_bytes, unknown_sizes, here, here_bytes, attempts,
        created_at, listed_at, due_at)
    SELECT pg_temp.id_of('import', place), id, 'cids', '{}', 'auto',
        CASE WHEN place % 50 = 3 THEN 'running' ELSE 'paused' END, '[]', 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, timestamptz '2026-01-01 00:00Z', now(), CASE WHEN place % 50 = 3 THEN now() END
    FROM people""",
    "import_items": """INSERT INTO import_items (id, import_id, position, created_at, source_cid,
        cid, origins, status, verified, was_here)
    SELECT pg_temp.id_of('item', n), pg_temp.id_of('import', pg_temp.place_of(n, :files / 2)), n,
        timestamptz '2026-01-01 00:00Z' + n * interval '1 microsecond', pg_temp.cid_of(n),
        pg_temp.cid_of(n), '[]', CASE WHEN n % 50 = 0 THEN 'failed'
            WHEN n % 2 = 0 THEN 'done' ELSE 'waiting' END, n % 2 = 0 AND n % 50 > 0, false
    FROM generate_series(1, :files / 2) n""",
    "import totals": """UPDATE imports SET total = sums.total, done = sums.done,
        failed = sums.failed
    FROM (SELECT import_id, count(*) AS total, count(*) FILTER (WHERE status = 'done') AS done,
        count(*) FILTER (WHERE status = 'failed') AS failed FROM import_items GROUP BY import_id)
        sums WHERE sums.import_id = imports.id""",
    "idempotency_records": """INSERT INTO idempotency_records (id, user_id, key_id, route, key,
        token, lease_until, status, answer, secret_version, created_at)
    SELECT pg_temp.id_of('answer', n), people.id, pg_temp.id_of('key', n), '/v1/files', 'key ' || n,
        pg_temp.id_of('token', n), now(), 201, '\\x00', :secret,
        now() - interval '1 hour'
    FROM generate_series(1, :files / 20) n JOIN people ON place = pg_temp.place_of(n, :files / 20)
    """,
    "visibility_changes": """INSERT INTO visibility_changes
        (id, file_id, user_id, visibility, attempts, due_at, created_at)
    SELECT pg_temp.id_of('change', n), id, user_id, 'private', 5,
        CASE WHEN n <= 20 THEN now() ELSE timestamptz '9999-01-01 00:00Z' END, now()
    FROM generate_series(1, :files / 100) n JOIN files ON id = pg_temp.id_of('file', n * 99)""",
    # Six rows of ten are hours of the last weeks, three are days before them, one a month; in the
    # order of time, as they are written.
    "traffic": """INSERT INTO traffic (id, granularity, period, kind, owner_id, key_id, share_id,
        file_id, cid, requests, unchanged, failed, bytes_out, bytes_in)
    SELECT decode(lpad(to_hex(n), 32, '0'), 'hex'),
        CASE WHEN n % 10 < 6 THEN 'hour' WHEN n % 10 < 9 THEN 'day' ELSE 'month' END,
        CASE WHEN n % 10 < 6
            THEN date_trunc('hour', now(), 'UTC') - interval '1 hour' * (511 - part / 2)
            WHEN n % 10 < 9
            THEN date_trunc('day', now(), 'UTC') - interval '1 day' * (277 - part / 4)
            ELSE date_trunc('month', now(), 'UTC') - interval '1 month' * (29 - part / 52) END,
        CASE WHEN n % 4 = 0 THEN 'gateway' WHEN n % 4 = 1 THEN 'share' ELSE 'content' END,
        people.id, CASE WHEN n % 4 > 1 THEN pg_temp.id_of('key', place) END,
        CASE WHEN n % 4 = 1 THEN pg_temp.id_of('share', file / 10) END,
        CASE WHEN n % 4 > 0 THEN pg_temp.id_of('file', file) END,
        CASE WHEN n % 4 = 0 THEN pg_temp.cid_of(file) END, 3, 0, 0, 24576, 0
    FROM (SELECT n, 1 + n * 7919 % :files AS file, n * 1024 / (:traffic + 1) AS part
        FROM generate_series(1::bigint, :traffic) n) each
    JOIN people ON place = pg_temp.place_of(file, :files)""",
    "traffic_totals": """INSERT INTO traffic_totals
        (period, kind, requests, unchanged, failed, bytes_out, bytes_in)
    SELECT period, kind, sum(requests), 0, 0, sum(bytes_out), 0 FROM traffic
    GROUP BY period, kind""",
    "egress_counters": """INSERT INTO egress_counters
        (subject_kind, subject_id, month, bytes, warned_percent)
    SELECT CASE WHEN owner_id IS NULL THEN 'instance' ELSE 'owner' END,
        coalesce(owner_id, '00000000-0000-0000-0000-000000000000'),
        to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM'), coalesce(sum(bytes_out), 0), 0
    FROM traffic WHERE period >= date_trunc('month', now(), 'UTC')
    GROUP BY GROUPING SETS ((owner_id), ())
    ON CONFLICT (subject_kind, subject_id, month) DO UPDATE SET bytes = excluded.bytes""",
}
"""In this order. What is no table of ours is a step on the way."""


def seed(
    database_url: str, scale: Scale, *, report: Callable[[str], None] = lambda line: None
) -> float:
    """Fill a migrated PostgreSQL in which there is one user. Returns how many seconds it took.

    `report` gets a line for each kind of row.
    """
    numbers = {
        **asdict(scale),
        "pins": scale.files // 5,
        "keys": scale.files // 20,
        "gone": scale.files // 50,
    }
    began = time.monotonic()
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg2://"))
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL synchronous_commit = off"))
        # Foreign keys hold by how the rows are made; looking each one up takes most of the time.
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("SET LOCAL work_mem = '256MB'"))
        connection.execute(text("SET LOCAL maintenance_work_mem = '256MB'"))
        # What is sealed is sealed by the secret that is here.
        first_key = text("SELECT secret_version FROM keys ORDER BY created_at LIMIT 1")
        numbers["secret"] = connection.scalar(first_key) or 1
        for statement in _FUNCTIONS:
            connection.exec_driver_sql(_filled(statement, numbers))
        for name, statement in _ROWS.items():
            started = time.monotonic()
            with _indexes_afterwards(connection, name):
                rows = connection.exec_driver_sql(_filled(statement, numbers)).rowcount
            report(f"{name}: {rows:,} rows in {time.monotonic() - started:.1f} s")
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()
    seconds = time.monotonic() - began
    report(f"{seconds:.0f} s in all")
    return seconds


def _filled(statement: str, numbers: dict[str, int]) -> str:
    """Numbers of our own, written into it: a bound one would keep functions from being inlined."""
    for name, value in numbers.items():
        statement = statement.replace(f":{name}", str(value))
    return statement.replace("%", "%%")


@contextmanager
def _indexes_afterwards(connection: Connection, table: str) -> Iterator[None]:
    """Make a table's indexes when its rows are there: in a fraction of the time."""
    found = connection.execute(
        text(
            "SELECT indexname, indexdef FROM pg_indexes "
            "LEFT JOIN pg_constraint ON conname = indexname "
            "WHERE schemaname = 'public' AND tablename = :table AND conname IS NULL"
        ),
        {"table": table},
    ).all()
    for name, _ in found:
        connection.exec_driver_sql(f'DROP INDEX "{name}"')
    yield
    for _, definition in found:
        connection.exec_driver_sql(definition.replace("%", "%%"))
