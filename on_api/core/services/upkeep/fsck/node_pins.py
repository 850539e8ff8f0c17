"""The node's list of pins, stored on disk: it may be longer than memory should hold."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from on_api.core.errors import BadRequest
from on_api.core.ipfs.formats.cid import normalise
from on_api.core.ipfs.port import IpfsNode, NodePin

PAGE_PINS = 500


class NodePins:
    """List of a node's recursive pins at one time. A context manager: its file is deleted at the
    end."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="on-api-fsck-")
        # Used by one thread at a time, not always the same one.
        self._table = sqlite3.connect(
            Path(self._folder.name) / "pins.db", isolation_level=None, check_same_thread=False
        )
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("CREATE TABLE pins (cid TEXT PRIMARY KEY, name TEXT) WITHOUT ROWID")
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._table.close()
        self._folder.cleanup()

    async def fill(self, node: IpfsNode) -> None:
        """List the node's pins. Raises a `NodeError`."""
        batch: list[NodePin] = []
        async for pin in node.pins():
            batch.append(pin)
            if len(batch) >= PAGE_PINS:
                self._keep(batch)
                batch = []
        self._keep(batch)

    def missing(self, cids: Sequence[str]) -> list[str]:
        """Return those of `cids` that are not in the list."""
        marks = ", ".join("?" * len(cids))
        query = f"SELECT cid FROM pins WHERE cid IN ({marks})"  # noqa: S608 (question marks)
        found = {row[0] for row in self._table.execute(query, cids)}
        return [cid for cid in cids if cid not in found]

    def pages(self) -> Iterator[list[NodePin]]:
        """Yield all pins in order of CID, page by page."""
        last = ""
        while True:
            rows = self._table.execute(
                "SELECT cid, name FROM pins WHERE cid > ? ORDER BY cid LIMIT ?", (last, PAGE_PINS)
            ).fetchall()
            if not rows:
                return
            yield [NodePin(cid, name) for cid, name in rows]
            last = rows[-1][0]

    def _keep(self, batch: Sequence[NodePin]) -> None:
        self._table.execute("BEGIN")
        self._table.executemany(
            "INSERT OR REPLACE INTO pins VALUES (?, ?)",
            [(_normal(pin.cid), pin.name) for pin in batch],
        )
        self._table.execute("COMMIT")
        self.count += len(batch)


def _normal(cid: str) -> str:
    try:
        return normalise(cid)
    except BadRequest:  # not ours: of a hash that on-api never accepts
        return cid
