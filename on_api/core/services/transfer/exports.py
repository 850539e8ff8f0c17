"""Exports: all of a user's content as one CAR, a list of it, and all metadata as JSON. Read and
written page by page; no session is open while bytes flow.

The CAR has one root, a directory that links to every content under its CID: any IPFS tool can read
it, whatever the number of contents. The list can be read by an import of kind `cids`.
"""

from __future__ import annotations

import csv
import io
import json
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from typing import Any, TypeVar

from anyio import to_thread
from sqlalchemy import select, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from on_api.core.errors import BlocksMissing, NodeTruncated
from on_api.core.ipfs.formats.car import CarError, CarReader, car_header, car_section
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.ipfs.formats.dag import DagError, UnknownCodecError, Walk
from on_api.core.ipfs.formats.unixfs import Entry, build_directory
from on_api.core.ipfs.port import IpfsNode
from on_api.core.models import Database, File, Holding, Pin, Share
from on_api.core.models.database import utc_now
from on_api.core.models.pin import PINNED_STATUS
from on_api.core.streams.pipeline import gathered

PAGE_ROWS = 500
FAN_OUT = 1000
"""Most links of one directory: about 100 kB."""
CAR_TYPE = "application/vnd.ipld.car; version=1"

Entity = TypeVar("Entity", File, Pin, Share)


class CarExport:
    """CAR of all content that a user holds. Its directories are made in memory before the first
    byte: about 300 bytes for each content."""

    def __init__(self, database: Database, node: IpfsNode, user_id: uuid.UUID) -> None:
        """Read what the user holds now, and build the directories."""
        self._node = node
        entries = list(_contents(database, user_id))
        self._levels: list[list[list[Entry]]] = []
        """Levels of directories, the top first, each directory with its entries."""
        while True:
            groups = [
                entries[start : start + FAN_OUT] for start in range(0, len(entries), FAN_OUT)
            ] or [[]]
            self._levels.insert(0, groups)
            made = [build_directory(group)[0] for group in groups]
            if len(made) == 1:
                self.root = made[0].cid
                self.size = made[0].dag_size
                """Approximate bytes of its blocks: equal ones may be counted twice."""
                return
            entries = [
                Entry(f"{number:06}", each.cid, each.dag_size) for number, each in enumerate(made)
            ]

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the CAR, verifying every block. Raises `NodeTruncated` for a missing block: what
        was written until then is not a whole CAR."""
        async for piece in gathered(self._sections()):
            yield piece

    async def _sections(self) -> AsyncIterator[bytes]:
        yield car_header(Cid.from_text(self.root))
        for level in self._levels:
            for group in level:
                directory, block = build_directory(group)
                yield car_section(Cid.from_text(directory.cid), block)
        for group in self._levels[-1]:
            for entry in group:
                async for section in self._content(entry.cid):
                    yield section

    async def _content(self, cid: str) -> AsyncIterator[bytes]:
        root = Cid.from_text(cid)
        if root.inline is not None:
            return  # the CID is the block
        walk: Walk | None = Walk(root)
        try:
            async with self._node.car(cid) as chunks:
                async for block_cid, block in CarReader(chunks).blocks():
                    walk = _follow(walk, block_cid, block)
                    yield car_section(block_cid, block)
            if walk is None:
                await self._node.dag_stat(cid)
            else:
                walk.end()
        except (CarError, DagError, BlocksMissing) as error:
            raise NodeTruncated(f"{cid} is incomplete on the node.") from error


def pins_list(database: Database, user_id: uuid.UUID) -> Iterator[str]:
    """Yield CSV in pieces: CID and name of every pin and file."""
    yield _csv_line("cid", "name")
    for pin in _rows(database, user_id, Pin, Pin.created_at, Pin.id):
        if pin.status == PINNED_STATUS and pin.removed_at is None:
            yield _csv_line(pin.cid, pin.name)
    for file in _rows(database, user_id, File, File.created_at, File.id):
        yield _csv_line(file.cid, file.name)


def metadata(database: Database, user_id: uuid.UUID) -> Iterator[str]:
    """Yield JSON in pieces: `files`, `pins` and `shares`, without any secret."""
    head = {"format": "on-api export", "version": 1, "exported_at": _moment(utc_now())}
    yield json.dumps(head)[:-1]
    files = _rows(database, user_id, File, File.created_at, File.id)
    yield from _json_array("files", (_file(row) for row in files))
    pins = _rows(database, user_id, Pin, Pin.created_at, Pin.id)
    yield from _json_array("pins", (_pin(row) for row in pins if row.removed_at is None))
    shares = _rows(database, user_id, Share, Share.created_at, Share.id)
    yield from _json_array("shares", (_share(row) for row in shares if row.revoked_at is None))
    yield "}\n"


def _contents(database: Database, user_id: uuid.UUID) -> Iterator[Entry]:
    last = ""
    while True:
        with database.session_scope(write=False) as session:
            page = session.execute(
                select(Holding.cid, Holding.bytes)
                .where(Holding.user_id == user_id, Holding.cid > last)
                .order_by(Holding.cid)
                .limit(PAGE_ROWS)
            ).all()
        if not page:
            return
        yield from (Entry(cid, cid, size) for cid, size in page)
        last = page[-1][0]


def _rows(
    database: Database,
    user_id: uuid.UUID,
    table: type[Entity],
    created_at: InstrumentedAttribute[datetime],
    row_id: InstrumentedAttribute[uuid.UUID],
) -> Iterator[Entity]:
    """Yield a user's rows, oldest first."""
    behind: tuple[datetime, uuid.UUID] | None = None
    while True:
        statement = select(table).where(table.user_id == user_id)
        if behind is not None:
            statement = statement.where(tuple_(created_at, row_id) > behind)
        with database.session_scope(write=False) as session:
            page: Sequence[Entity] = session.scalars(
                statement.order_by(created_at, row_id).limit(PAGE_ROWS)
            ).all()
        if not page:
            return
        yield from page
        behind = (page[-1].created_at, page[-1].id)


def _follow(walk: Walk | None, cid: Cid, block: bytes) -> Walk | None:
    """Check that this is the next block. Returns None once only the node can follow the DAG."""
    try:
        if walk is not None:
            walk.take(cid, block)
    except UnknownCodecError:
        return None
    return walk


def _csv_line(cid: str, name: str | None) -> str:
    line = io.StringIO()
    # The list is read line by line.
    name = " ".join((name or "").splitlines())
    csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow([cid, name])
    return line.getvalue()


def _json_array(name: str, documents: Iterator[dict[str, Any]]) -> Iterator[str]:
    yield f', "{name}": ['
    comma = "\n"
    for document in documents:
        yield comma + json.dumps(document, ensure_ascii=False)
        comma = ",\n"
    yield "\n]"


def _file(row: File) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "cid": row.cid,
        "name": row.name,
        "size": row.size,
        "media_type": row.media_type,
        "sha256": row.sha256.hex(),
        "visibility": row.visibility,
        "sealed_for": row.sealed_for,
        "meta": row.meta,
        "created_at": _moment(row.created_at),
        "source_created_at": _moment(row.source_created_at),
    }


def _pin(row: Pin) -> dict[str, Any]:
    return {
        "requestid": str(row.id),
        "status": row.status,
        "cid": row.source_cid,
        "name": row.name,
        "meta": row.meta,
        "origins": row.origins,
        "created": _moment(row.created_at),
        "source_created_at": _moment(row.source_created_at),
    }


def _share(row: Share) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "file_id": str(row.file_id),
        "expires_at": _moment(row.expires_at),
        "max_downloads": row.max_downloads,
        "downloads": row.downloads,
        "has_password": row.password_hash is not None,
        "created_at": _moment(row.created_at),
    }


def _moment(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat().replace("+00:00", "Z")


async def open_car(database: Database, node: IpfsNode, user_id: uuid.UUID) -> CarExport:
    """Build the export of all content that a user holds, in a thread."""
    return await to_thread.run_sync(CarExport, database, node, user_id)
