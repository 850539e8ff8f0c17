"""A list of CIDs as a source: a text with one per line, optionally followed by a name; or a CSV
with a header that has a column `cid`."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

from on_api.core.errors import BadRequest
from on_api.core.net.errors import SourceMalformed
from on_api.core.net.outbound import Outbound
from on_api.core.providers import shapes
from on_api.core.providers.base import CIDS, Page, Source, SourceItem, SourceSpec
from on_api.core.providers.car import chunks_of

PAGE_ITEMS = 1000
MAX_LINES = 1_000_000
MAX_LINE_LENGTH = 32 * 1024
"""Characters of a line at most."""
MAX_COLUMNS = 100


class CidsSource(Source):
    """The lines of a list, in order. A line that can't be understood is an item with a problem."""

    kind = CIDS

    def __init__(self, spec: SourceSpec, outbound: Outbound) -> None:
        self._text = spec.text
        self._path = None if spec.path is None else Path(spec.path)
        self._max_bytes = outbound.limits.max_list
        if self._text is None and self._path is None:
            raise BadRequest("source.text: required for a source of kind cids.")

    async def pages(self, after: str | None = None) -> AsyncIterator[Page]:
        """See `Source.pages`. `resume` is the number of the last line. Raises `SourceMalformed` for
        a list that is too long or not UTF-8, `BadRequest` for a file that can't be read."""
        last = int(after) if after is not None and after.isdigit() else 0
        items: list[SourceItem] = []
        number = last
        for number, found in items_of(await self._whole()):
            if number > last:
                items.append(found)
            if len(items) >= PAGE_ITEMS:
                yield Page(items, str(number))
                items = []
        if items:
            yield Page(items, str(number))

    async def _whole(self) -> str:
        if self._path is None:
            text = self._text or ""
            if len(text) > self._max_bytes:
                raise SourceMalformed(f"The list exceeds {self._max_bytes} bytes.")
            return text
        data = bytearray()
        async with aclosing(chunks_of(self._path)) as chunks:
            async for chunk in chunks:
                data += chunk
                if len(data) > self._max_bytes:
                    raise SourceMalformed(f"The list exceeds {self._max_bytes} bytes.")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise SourceMalformed("The list is not valid UTF-8.") from error


def items_of(text: str) -> Iterator[tuple[int, SourceItem]]:
    """Yield each line's number, from 1, and its item. Empty lines and comments (`#`) are
    skipped."""
    columns: Sequence[str] | None = None
    is_first = True
    for number, raw in enumerate(_lines(text.removeprefix("\ufeff")), 1):
        if number > MAX_LINES:
            raise SourceMalformed(f"The list has more than {MAX_LINES} lines.")
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if is_first:
            is_first = False
            columns = _header(line)
            if columns is not None:
                continue
        if len(line) > MAX_LINE_LENGTH:
            yield number, shapes.item(line, problem=f"Line {number} is too long.")
        elif columns is not None:
            yield number, _of_csv(number, line, columns)
        else:
            yield number, _of_text(number, line)


def _lines(text: str) -> Iterator[str]:
    """Split by line feeds only: names may contain every other separator that Python knows."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1


def _header(line: str) -> Sequence[str] | None:
    cells = _cells(line)
    names = [] if cells is None else [cell.strip().lower() for cell in cells]
    return names if "cid" in names and len(names) <= MAX_COLUMNS else None


def _cells(line: str) -> list[str] | None:
    """Parse one line only, so that an unclosed quotation mark doesn't swallow the lines after
    it."""
    try:
        return next(csv.reader([line], strict=True, skipinitialspace=True), None)
    except csv.Error:
        return None


def _of_csv(number: int, line: str, columns: Sequence[str]) -> SourceItem:
    cells = _cells(line)
    if cells is None or len(cells) > len(columns):
        return shapes.item(line, problem=f"Line {number} does not have the columns of the header.")
    values = dict(zip(columns, cells, strict=False))
    cid = values.pop("cid", "").strip()
    return shapes.item(
        cid,
        named=values.pop("name", None),
        about={key: value for key, value in values.items() if key and value},
        problem=_problem(number, cid),
    )


def _of_text(number: int, line: str) -> SourceItem:
    cid, *name = line.split(maxsplit=1)
    return shapes.item(cid, named=name[0] if name else None, problem=_problem(number, cid))


def _problem(number: int, cid: str) -> str | None:
    return None if shapes.is_cid(cid) else f"Line {number} is not a valid CID."
