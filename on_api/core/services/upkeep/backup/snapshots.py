"""Copying a running on-api's database into one file of SQLite, whichever engine it uses."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pydantic import SecretStr

from on_api.core.durable_files import sync
from on_api.core.errors import StartupError
from on_api.core.models import Database, migrations
from on_api.core.models.copying import CopyProgress, copy_rows, snapshot
from on_api.core.settings import Settings

PATIENCE_SECONDS = 60.0
"""Seconds to wait for a lock on SQLite's file."""


def copy_database(
    database: Database, settings: Settings, target: Path, progress: CopyProgress | None = None
) -> None:
    """Copy one consistent state of the database into a new file (mode 0600), durable at the end.

    Raises `StartupError` when it can't be written, `DatabaseUnavailable` when it can't be read.
    """
    target.touch(mode=0o600)
    if database.file is None:
        with sqlite_at(target, settings) as copy:
            migrations.upgrade(copy)
            with snapshot(database) as source, copy.session_scope() as session:
                copy_rows(source, session.connection(), progress)
    else:
        _copy_file(database.file, target)
    try:
        with closing(sqlite3.connect(target)) as connection:
            # So that the file is all there is of it, and can be read where nothing can be written.
            connection.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise StartupError(f"Can't write {target} ({error}).") from None
    sync(target)


@contextmanager
def sqlite_at(path: Path, settings: Settings) -> Iterator[Database]:
    """Open another SQLite file than the settings name while the block runs."""
    url = SecretStr(f"sqlite:///{path.absolute()}")
    with Database.opened(settings.model_copy(update={"database_url": url})) as database:
        yield database


def _copy_file(source: Path, target: Path) -> None:
    try:
        with (
            closing(sqlite3.connect(source, timeout=PATIENCE_SECONDS)) as reading,
            closing(sqlite3.connect(target)) as writing,
        ):
            # All pages in one step: a step that is followed by another one begins anew whenever
            # somebody writes. Writers are not held up by it, as the journal is a WAL.
            reading.backup(writing, pages=-1)
    except sqlite3.Error as error:
        raise StartupError(f"Can't copy the database {source} to {target} ({error}).") from None
