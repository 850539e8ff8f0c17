"""The revision of the database, and the one that this code needs.

Read without Alembic, which only `migrations.py` imports, to change the schema: importing it takes a
tenth of the start-up time, and every start and every `/readyz` needs this.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from sqlalchemy import Connection, inspect, text

import on_api
from on_api.core.errors import StartupError
from on_api.core.installation import IS_INSTALLED

PROJECT = Path(on_api.__file__).resolve().parent.parent
"""Folder that `on_api` is in: the checkout's root, or `site-packages`."""

MIGRATIONS = PROJECT / ("on_api/alembic" if IS_INSTALLED else "alembic")
"""Folder of Alembic's `env.py` and of `versions`."""

_REVISION = re.compile(r'^revision: str = ["\'](\w+)["\']$', re.MULTILINE)
_BEFORE = re.compile(r'^down_revision: str \| None = ["\'](\w+)["\']$', re.MULTILINE)


def needed_revision() -> str:
    """Return the newest revision in `alembic/versions`. Raises `StartupError` if there is none."""
    newest = known_revisions()[-1:]
    if not newest:
        raise StartupError(f"There are no migrations in {MIGRATIONS}.")
    return newest[0]


@cache
def known_revisions() -> list[str]:
    """Return all revisions from the first to the newest, as each file in `alembic/versions` names
    itself and its predecessor."""
    after: dict[str | None, str] = {}
    for path in (MIGRATIONS / "versions").glob("*.py"):
        source = path.read_text()
        before = _BEFORE.search(source)
        if revision := _REVISION.search(source):
            after[before[1] if before else None] = revision[1]
    known: list[str] = []
    while newer := after.get(known[-1] if known else None):
        known.append(newer)
    return known


def present_revision(connection: Connection) -> str | None:
    """Return the revision of the database, or None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def check_revision(connection: Connection) -> None:
    """Raise `StartupError`, with the remedy, unless the database is at exactly the revision that
    this code needs."""
    needed, present = needed_revision(), present_revision(connection)
    if present == needed:
        return
    if present is None or present in known_revisions():
        raise StartupError(
            f"The database is outdated (it is at revision {present or 'none'}, but {needed} is"
            " required): run `on-api db upgrade` (in a checkout also `alembic upgrade"
            " head` or `make migrate`)."
        )
    raise StartupError(
        f"The database is at revision {present}, which this version of on-api does not know,"
        " since it comes from a newer version. Update on-api, or downgrade the database with"
        " the newer version."
    )
