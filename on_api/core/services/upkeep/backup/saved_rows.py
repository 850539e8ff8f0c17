"""Rows of a database that is in a backup, read without changing its file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine, exists, func, select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from on_api.core.errors import StartupError
from on_api.core.models import Content, Deployment, File, Holding, Pin, SecretInUse, User
from on_api.core.models.pin import PINNED_STATUS
from on_api.core.services.upkeep.backup.tables import needed

PAGE = 500
MOST_NAMED = 10
"""References named of one content that is damaged."""


@dataclass(frozen=True, slots=True)
class Needed:
    """A content whose DAG a backup needs. `held`: somebody holds it; else it is a bundle, whose
    members are contents of their own."""

    cid: str
    held: bool


class SavedRows:
    """Rows of one file. Raises `StartupError` when it can't be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        name = path.absolute().as_uri()
        self._engine = create_engine(
            f"sqlite:///{name}?mode=ro&immutable=1&uri=true", poolclass=NullPool
        )

    def trouble(self) -> str | None:
        """Return what is wrong with the file, None when SQLite finds it whole. Reads all of it."""
        try:
            name = f"{self._path.absolute().as_uri()}?mode=ro&immutable=1"
            with closing(sqlite3.connect(name, uri=True)) as connection:
                [found] = connection.execute("PRAGMA integrity_check(1)").fetchone()
        except sqlite3.Error as error:
            return str(error)
        return None if found == "ok" else str(found)

    def count(self) -> int:
        """Return the number of contents whose DAGs are needed."""
        with self._session() as session:
            return session.scalar(select(func.count()).select_from(needed().subquery())) or 0

    def needed(self) -> Iterator[Sequence[Needed]]:
        """Yield pages of the contents whose DAGs are needed, bundles first: their members' blocks
        come with them."""
        held = exists().where(Holding.cid == Content.cid)
        for is_held in (False, True):
            last = ""
            while True:
                asked = needed().where(held if is_held else ~held, Content.cid > last)
                with self._session() as session:
                    page = session.scalars(asked.order_by(Content.cid).limit(PAGE)).all()
                if not page:
                    break
                yield [Needed(cid, is_held) for cid in page]
                last = page[-1]

    def references(self, cid: str) -> Sequence[str]:
        """Return up to `MOST_NAMED` files and pins that need a content, described for a person."""
        with self._session() as session:
            files = session.execute(
                select(User.username, File.id, File.name)
                .join(User, User.id == File.user_id)
                .where(File.cid == cid)
                .order_by(File.created_at)
                .limit(MOST_NAMED)
            ).all()
            pins = session.execute(
                select(User.username, Pin.id, Pin.name)
                .join(User, User.id == Pin.user_id)
                .where(Pin.cid == cid, Pin.status == PINNED_STATUS)
                .order_by(Pin.created_at)
                .limit(MOST_NAMED)
            ).all()
        named = [("file", *row) for row in files] + [("pin", *row) for row in pins]
        return [
            f"{owner}: {kind} {row_id}" + (f" {name!r}" if name else "")
            for kind, owner, row_id, name in named[:MOST_NAMED]
        ]

    def deployment(self) -> str | None:
        """Return the deployment's name; None where no pin was ever made."""
        with self._session() as session:
            return session.scalar(select(Deployment.name))

    def secret_version(self) -> int | None:
        """Return the version of the master secret in use; None where nothing was ever sealed."""
        with self._session() as session:
            return session.scalar(select(SecretInUse.version))

    @contextmanager
    def _session(self) -> Iterator[Session]:
        try:
            with Session(self._engine) as session:
                yield session
        except DatabaseError as error:
            raise StartupError(f"Can't read {self._path} ({error.orig}).") from None
