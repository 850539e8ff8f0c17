"""Restoration of a backup into an empty home or database, and onto a node.

The order makes it safe to be killed anywhere and run again: blocks and pins first, the database
last and in one piece. Until then nothing in the home, or in PostgreSQL, looks like an on-api.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import inspect, select

from on_api.core.crypto.secrets import PREVIOUS_FILE, SECRET_FILE, SecretCopy
from on_api.core.durable_files import sync
from on_api.core.errors import StartupError
from on_api.core.ipfs.daemon.process import LOG_NAMES
from on_api.core.models import AuditEvent, Base, Database, Deployment, User, migrations
from on_api.core.models.copying import CopyProgress, copy_rows, snapshot
from on_api.core.models.revisions import known_revisions, present_revision
from on_api.core.services.accounts import audit
from on_api.core.services.accounts.audit import COMMAND_LINE
from on_api.core.services.upkeep.backup.folder import SavedDatabase
from on_api.core.services.upkeep.backup.restore_state import RestoreState
from on_api.core.services.upkeep.backup.saved_rows import SavedRows
from on_api.core.services.upkeep.backup.snapshots import sqlite_at
from on_api.core.services.upkeep.backup.tables import settle
from on_api.core.settings import Settings

WORK_FILE = "restore.sqlite3"
"""Name in the home of the database while it is prepared."""
ACTION = "restore"
"""Action in the audit log by which a restored database is recognised."""
MAY_BE_THERE = {"ipfs", "lock", "lost+found", SECRET_FILE, PREVIOUS_FILE, *LOG_NAMES}
"""Names that a home may have before: a node that has outlived its database, and the secret where
the backup has none."""


def require_empty(settings: Settings) -> None:
    """Raise `StartupError` unless home and database are empty: nothing is ever written over."""
    home = settings.home
    if home.exists():
        others = {path.name for path in home.iterdir()} - MAY_BE_THERE
        if others:
            raise StartupError(
                f"{home} is not empty (there is {min(others)}): nothing was written. Move it away, "
                "or set ON_API_HOME to an empty folder."
            )
    if settings.uses_sqlite:
        with Database.opened(settings) as database:
            path = database.file
        if path is not None and path.exists():
            raise StartupError(f"There is a database {path}: nothing was written. Move it away.")
        return
    with Database.opened(settings) as database, database.session_scope(write=False) as session:
        tables = set(inspect(session.connection()).get_table_names())
        others = tables - Base.metadata.tables.keys() - {"alembic_version"}
        if others or ("users" in tables and session.scalar(select(User.id).limit(1)) is not None):
            raise StartupError(
                "The database at ON_API_DATABASE_URL is not empty: nothing was written. Name a new "
                "one."
            )


def require_secret(saved: SavedDatabase, secret: SecretCopy) -> None:
    """Raise `StartupError` unless this is the master secret that the database uses: with another
    one no key would be valid, and no private file could be opened."""
    version = SavedRows(saved.path).secret_version()
    if version is not None and version not in secret.versions:
        raise StartupError(
            f"This is not the master secret that the database {saved.stamp} uses: give the one "
            "that on-api had at that time."
        )


def has_secret_of_its_own(settings: Settings) -> bool:
    """Return whether the settings or the home have a master secret already."""
    return settings.secret_key is not None or (settings.home / SECRET_FILE).exists()


class RestoredDatabase:
    """The database to restore: prepared in a file of the home, then put into its place."""

    def __init__(self, settings: Settings, saved: SavedDatabase, state: RestoreState) -> None:
        self._settings = settings
        self._saved = saved
        self._state = state
        self.path = settings.home / WORK_FILE

    def is_in_place(self) -> bool:
        """Return whether an earlier run has put it into its place."""
        with Database.opened(self._settings) as database:
            if database.file is not None and not database.file.exists():
                return False
            with database.session_scope(write=False) as session:
                if not inspect(session.connection()).has_table(AuditEvent.__tablename__):
                    return False
                mine = select(AuditEvent.details).where(AuditEvent.action == ACTION)
                found = [details.get("restore") for details in session.scalars(mine)]
        return str(self._state.id) in found

    def prepare(self) -> None:
        """Copy it out of the backup, bring it to this code's revision, and end what was under way.

        Raises `StartupError` for a database of a newer on-api, or one that is damaged.
        """
        self._discard()
        trouble = SavedRows(self._saved.path).trouble()
        if trouble is not None:
            raise StartupError(
                f"The database {self._saved.stamp} of the backup is damaged ({trouble}): restore "
                "another one by --database."
            )
        copy_file(self._saved.path, self.path)
        with self.opened() as database:
            with database.session_scope(write=False) as session:
                revision = present_revision(session.connection())
            if revision not in known_revisions():
                raise StartupError(
                    f"The database {self._saved.stamp} is at revision {revision}, which this "
                    "on-api doesn't know: restore it with the on-api that made the backup, or a "
                    "newer one."
                )
            migrations.upgrade(database)
            with database.session_scope() as session:
                settle(session)

    @contextmanager
    def opened(self) -> Iterator[Database]:
        """Open the prepared database while the block runs."""
        with sqlite_at(self.path, self._settings) as database:
            yield database

    def finish(self, node_id: str | None, progress: CopyProgress) -> None:
        """Record the restoration, and the node that belongs to the deployment now (None: on-api's
        own); then put the database into its place, in one piece."""
        with self.opened() as database:
            with database.session_scope() as session:
                row = session.scalar(select(Deployment))
                if row is not None:
                    row.node_id = node_id
                audit.record(
                    session,
                    COMMAND_LINE,
                    ACTION,
                    "deployment",
                    restore=str(self._state.id),
                    database=self._state.stamp,
                )
            if not self._settings.uses_sqlite:
                self._copy_to_postgresql(database, progress)
                self._discard()
                return
        self._move()

    def _copy_to_postgresql(self, source: Database, progress: CopyProgress) -> None:
        with Database.opened(self._settings) as target:
            migrations.upgrade(target)
            with snapshot(source) as rows, target.session_scope() as session:
                copy_rows(rows, session.connection(), progress)

    def _move(self) -> None:
        with Database.opened(self._settings) as database:
            place = database.file
        if place is None:
            raise StartupError("ON_API_DATABASE_URL names no file: nothing can be restored there.")
        with sqlite3.connect(self.path) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")  # all of it in this file
        connection.close()
        sync(self.path)
        if place.parent.absolute() == self.path.parent.absolute():
            self.path.replace(place)
        else:
            # Perhaps another file system: written beside its place first.
            part = place.with_name(place.name + ".restored")
            copy_file(self.path, part)
            part.replace(place)
        sync(place.parent)
        self._discard()

    def _discard(self) -> None:
        for path in self.path.parent.glob(f"{WORK_FILE}*"):
            path.unlink()


def copy_file(source: Path, target: Path) -> None:
    """Copy a file (mode 0600), durable."""
    target.touch(mode=0o600)
    shutil.copyfile(source, target)
    sync(target)
