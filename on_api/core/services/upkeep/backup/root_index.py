"""Index of the roots whose whole DAG is in a backup, so that the next one asks the node for nothing
of them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from on_api.core.errors import StartupError

_TABLES = """
CREATE TABLE IF NOT EXISTS roots (cid TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (
    root TEXT, position INTEGER, cid TEXT, PRIMARY KEY (root, position)
) WITHOUT ROWID;
"""
AT_ONCE = 500
"""Parameters in one statement."""


class RootIndex:
    """SQLite file of roots, and of the blocks of DAGs whose links on-api can't follow. Thread-safe.

    Raises `StartupError` when the file can't be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def known(self, cids: Sequence[str]) -> set[str]:
        """Return those of the roots that are wholly here."""
        found: set[str] = set()
        with self._opened() as connection:
            for start in range(0, len(cids), AT_ONCE):
                some = cids[start : start + AT_ONCE]
                marks = ", ".join("?" * len(some))
                asked = f"SELECT cid FROM roots WHERE cid IN ({marks})"  # noqa: S608 (marks only)
                found |= {cid for (cid,) in connection.execute(asked, some)}
        return found

    def add(self, cids: Iterable[str]) -> None:
        """Record roots whose blocks are durable."""
        with self._opened() as connection:
            connection.executemany("INSERT OR IGNORE INTO roots VALUES (?)", [(c,) for c in cids])

    def forget(self, cids: Iterable[str]) -> None:
        """Forget roots, so that the next backup looks at each of their blocks."""
        with self._opened() as connection:
            connection.executemany("DELETE FROM roots WHERE cid = ?", [(cid,) for cid in cids])

    def list_blocks(self, root: str, cids: Iterable[str]) -> None:
        """Record the blocks of a DAG that only the node can follow, in its order."""
        with self._opened() as connection:
            connection.execute("DELETE FROM blocks WHERE root = ?", (root,))
            rows = [(root, position, cid) for position, cid in enumerate(cids)]
            connection.executemany("INSERT INTO blocks VALUES (?, ?, ?)", rows)

    def listed(self, root: str) -> Sequence[str]:
        """Return the blocks of such a DAG; empty for all others."""
        if not self._path.exists():
            return []
        asked = "SELECT cid FROM blocks WHERE root = ? ORDER BY position"
        with self._opened(writes=False) as connection:
            return [cid for (cid,) in connection.execute(asked, (root,))]

    @contextmanager
    def _opened(self, *, writes: bool = True) -> Iterator[sqlite3.Connection]:
        name = f"{self._path.absolute().as_uri()}?mode={'rwc' if writes else 'ro'}"
        try:
            with self._lock, closing(sqlite3.connect(name, uri=True)) as connection:
                if writes:
                    connection.executescript(_TABLES)
                with connection:  # one transaction
                    yield connection
        except sqlite3.Error as error:
            raise StartupError(
                f"Can't use {self._path} ({error}). It may be deleted: the next backup then reads "
                "what it has, and makes it again."
            ) from None
