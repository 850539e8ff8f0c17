"""Report on an import: what was moved, item by item, and in one sentence whether that is
everything. Streamed: memory is that of one page, whatever the size."""

from __future__ import annotations

import csv
import io
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, select

from on_api.core.models import Database, File, Import, ImportItem
from on_api.core.models.file import FOR_RECIPIENTS, PRIVATE
from on_api.core.models.imports import CANCELLED, DONE, DRAFT, FAILED, PAUSED, SKIPPED
from on_api.core.providers.base import ON_API
from on_api.core.services.transfer.imports import find_import

PAGE_ITEMS = 500
NAMED_ITEMS = 20
"""Most items that the last line names."""
COLUMNS = (
    "position", "status", "cid", "source_cid", "name", "size", "bytes", "blocks", "verified",
    "route", "seconds", "reason", "source_created_at", "pin_id", "file_id", "note",
)  # fmt: skip

_INCOMPLETE = {
    DRAFT: "Not started",
    PAUSED: "Paused",
    CANCELLED: "Cancelled",
    DONE: "NOT everything was imported",
    FAILED: "NOT everything was imported",
}
_CLOSED = (
    "The file is stored here, but none of your identities decrypts it; start this import again to"
    " retry."
)
_NOT_MOVED = " Links, keys and settings of the source account are not part of an import."
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class ReportSummary:
    """Last line of a report. `complete`: every item is here, and no file is closed that its owner
    should be able to read."""

    complete: bool
    words: str


class Totals:
    """Sums over the items of an import that have been read."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.counts = {"waiting": 0, "moving": 0, "done": 0, "skipped": 0, "failed": 0}
        self.bytes = 0
        self.blocks = 0
        self.verified = 0
        self.failures: list[str] = []
        self.noted = 0
        self.notes: list[str] = []

    def add(self, item: dict[str, Any]) -> None:
        """Count one more item, given as it is shown."""
        self.counts[item["status"]] += 1
        if item["verified"]:
            self.verified += 1
            self.bytes += item["bytes"] or 0
            self.blocks += item["blocks"] or 0
        if item["status"] == FAILED and len(self.failures) < NAMED_ITEMS:
            self.failures.append(f"{item['source_cid']} ({item['reason']})")
        if item["note"] is not None:
            self.noted += 1
            if len(self.notes) < NAMED_ITEMS:
                self.notes.append(f"{item['source_cid']} ({item['note']})")

    def as_document(self) -> dict[str, int]:
        """Return the sums as shown. Bytes and blocks are of verified items, each counted in
        full."""
        return {
            "items": sum(self.counts.values()),
            "moved": self.counts["done"],
            "already_here": self.counts["skipped"],
            "failed": self.counts["failed"],
            "left": self.counts["waiting"] + self.counts["moving"],
            "verified": self.verified,
            "noted": self.noted,
            "bytes": self.bytes,
            "blocks": self.blocks,
        }

    def summary(self, status: str, error: str | None) -> ReportSummary:
        """Return the last line: everything is here and verified, or exactly what is not."""
        here = self.counts["done"] + self.counts["skipped"]
        items = sum(self.counts.values())
        if status == DONE and here == items == self.verified:
            return ReportSummary(True, self._whole(items))
        words = [
            f"{_INCOMPLETE.get(status, 'Not finished yet')}: {here} of {items} items are stored"
            " here."
        ]
        if error is not None and not self.failures:
            words.append(error)
        if self.failures:
            more = self.counts["failed"] - len(self.failures)
            named = "; ".join(self.failures) + (f"; and {more} more" if more else "")
            words.append(f"{self.counts['failed']} failed: {named}.")
        if left := self.counts["waiting"] + self.counts["moving"]:
            words.append(f"{left} items are left.")
        return ReportSummary(False, " ".join(words))

    def _whole(self, items: int) -> str:
        if not items:
            return "The source's list is empty: there was nothing to import."
        sums = (
            f"{items} items, {self.blocks} blocks, {self.bytes} bytes;"
            f" {self.counts['skipped']} of the items were already stored."
        )
        rest = _NOT_MOVED if self._kind == ON_API else ""
        if not self.noted:
            return f"Everything was imported and verified: {sums}{rest}"
        more = self.noted - len(self.notes)
        named = "; ".join(self.notes) + (f"; and {more} more" if more else "")
        return (
            f"All items are stored here, but {self.noted} of them could not be kept or"
            f" verified in full: {named}. In total: {sums}{rest}"
        )


def json_report(database: Database, user_id: uuid.UUID, import_id: uuid.UUID) -> Iterator[str]:
    """Yield the report as one JSON object, in pieces: the import, `items`, `totals`, `complete`,
    `verdict`.

    Raises `NotFound` before the first piece.
    """
    row = _read(database, user_id, import_id)
    totals = Totals(row.kind)
    head = {"id": str(row.id), "kind": row.kind, "source": row.source, "status": row.status}
    yield json.dumps({"import": head}, ensure_ascii=False)[:-1] + ', "items": ['
    comma = "\n"
    for page in _pages(database, import_id):
        for item in page:
            totals.add(item)
        shown = [json.dumps(item, ensure_ascii=False) for item in page]
        yield comma + ",\n".join(shown)
        comma = ",\n"
    row = _read(database, user_id, import_id)
    summary = totals.summary(row.status, row.error)
    tail = {
        "totals": totals.as_document(),
        "complete": summary.complete,
        "verdict": summary.words,
    }
    yield "\n], " + json.dumps(tail, ensure_ascii=False)[1:] + "\n"


def csv_report(database: Database, user_id: uuid.UUID, import_id: uuid.UUID) -> Iterator[str]:
    """Yield the report as CSV, in pieces; the last line is `verdict` and its words.

    No cell can be taken for a formula. Raises `NotFound` before the first piece.
    """
    row = _read(database, user_id, import_id)
    totals = Totals(row.kind)
    yield _csv_line(COLUMNS)
    for page in _pages(database, import_id):
        for item in page:
            totals.add(item)
        yield "".join(_csv_line([each[column] for column in COLUMNS]) for each in page)
    row = _read(database, user_id, import_id)
    yield _csv_line(["verdict", totals.summary(row.status, row.error).words])


def summary_of(database: Database, user_id: uuid.UUID, import_id: uuid.UUID) -> ReportSummary:
    """Return the last line alone. Raises `NotFound`."""
    row = _read(database, user_id, import_id)
    totals = Totals(row.kind)
    for page in _pages(database, import_id):
        for item in page:
            totals.add(item)
    row = _read(database, user_id, import_id)
    return totals.summary(row.status, row.error)


def as_document(item: ImportItem, *, is_closed: bool) -> dict[str, Any]:
    """Return one item as shown in a report. `is_closed`: it is a private file that can't be opened
    here, and is shown as failed even if it counts as done."""
    shown = {
        "position": item.position,
        "status": item.status,
        "cid": item.cid,
        "source_cid": item.source_cid,
        "name": item.name,
        "size": item.size,
        "bytes": item.dag_size if item.verified else None,
        "blocks": item.blocks if item.verified else None,
        "verified": item.verified,
        "route": item.route,
        "seconds": None if item.seconds is None else round(item.seconds, 3),
        "reason": item.reason,
        "source_created_at": _moment(item.source_created_at),
        "pin_id": None if item.pin_id is None else str(item.pin_id),
        "file_id": None if item.file_id is None else str(item.file_id),
        "note": item.note,
    }
    if is_closed and item.status in {DONE, SKIPPED}:
        unmade = {"bytes": None, "blocks": None, "verified": False}
        shown |= {"status": FAILED, "reason": _CLOSED, **unmade}
    return shown


def _pages(database: Database, import_id: uuid.UUID) -> Iterator[Sequence[dict[str, Any]]]:
    is_closed = and_(
        File.id == ImportItem.file_id,
        File.visibility == PRIVATE,
        File.sealed_for == FOR_RECIPIENTS,
    )
    last = -1
    while True:
        with database.session_scope(write=False) as session:
            page = session.execute(
                select(ImportItem, File.id)
                .outerjoin(File, is_closed)
                .where(ImportItem.import_id == import_id, ImportItem.position > last)
                .order_by(ImportItem.position)
                .limit(PAGE_ITEMS)
            ).all()
        if not page:
            return
        yield [as_document(item, is_closed=file_id is not None) for item, file_id in page]
        last = page[-1][0].position


def _read(database: Database, user_id: uuid.UUID, import_id: uuid.UUID) -> Import:
    with database.session_scope(write=False) as session:
        return find_import(session, user_id, import_id)


def _csv_line(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow([_cell(cell) for cell in cells])
    return line.getvalue()


def _cell(value: object) -> object:
    """Return a cell that a spreadsheet does not compute, whatever a stranger wrote into a name."""
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return "" if value is None else value


def _moment(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat().replace("+00:00", "Z")


ReportGenerator = Callable[[Database, uuid.UUID, uuid.UUID], Iterator[str]]
REPORTS: dict[str, tuple[str, ReportGenerator]] = {
    "json": ("application/json", json_report),
    "csv": ("text/csv; charset=utf-8", csv_report),
}
"""Media type and generator of the report, by format."""
