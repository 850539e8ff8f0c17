"""Parsing of other services' answers: every value is untrusted, and is returned in a form and a
size that can be stored. Raises only `SourceMalformed`."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from on_api.core.errors import BadRequest
from on_api.core.ipfs.formats.cid import MAX_LENGTH, Cid
from on_api.core.ipfs.formats.multiaddr import MAX_ADDRESSES, Multiaddr
from on_api.core.net.errors import SourceMalformed
from on_api.core.providers.base import (
    MAX_META_BYTES,
    MAX_META_ENTRIES,
    MAX_NAME_LENGTH,
    SourceFile,
    SourceItem,
)

MAX_ROWS = 10_000
"""Rows of one page at most: ten times what any service is asked for."""
_MAX_SIZE_BYTES = 2**62
NO_CID = "The source does not provide a valid CID."


def row(value: object) -> Mapping[str, Any]:
    """Return a JSON object."""
    if not isinstance(value, dict):
        raise SourceMalformed
    return value


def rows(value: object) -> Sequence[Mapping[str, Any]]:
    """Return a list of JSON objects, at most `MAX_ROWS`."""
    if not isinstance(value, list) or len(value) > MAX_ROWS:
        raise SourceMalformed
    return [row(each) for each in value]


def text(value: object) -> str:
    """Return a required text."""
    if not isinstance(value, str):
        raise SourceMalformed
    return value


def whole(value: object) -> int:
    """Return an integer that is not negative."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_SIZE_BYTES:
        raise SourceMalformed
    return value


def moment(value: object) -> datetime:
    """Return a moment in UTC from RFC 3339 of any precision; UTC if no offset is given."""
    try:
        found = datetime.fromisoformat(text(value)[:64])
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise SourceMalformed("The source does not provide a valid date.") from error


def maybe_moment(value: object) -> datetime | None:
    """Return a moment as `moment` does, or None if it is not valid."""
    try:
        return moment(value)
    except SourceMalformed:
        return None


def maybe_size(value: object) -> int | None:
    """Return a number of bytes, given as a number or as digits; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    try:
        return whole(value)
    except SourceMalformed:
        return None


def name(value: object) -> str | None:
    """Return a name without control characters, cut at `MAX_NAME_LENGTH`; None if nothing is
    left."""
    if not isinstance(value, str):
        return None
    return storable(value[: 4 * MAX_NAME_LENGTH], blank=" ").strip()[:MAX_NAME_LENGTH] or None


def storable(value: str, *, blank: str = "") -> str:
    """Return the text without what a database or a header can't hold: control characters become
    `blank`, surrogates U+FFFD."""
    if value.isascii() and value.isprintable():
        return value
    return "".join(
        "\ufffd" if "\ud800" <= letter <= "\udfff"
        else blank if unicodedata.category(letter) == "Cc"
        else letter
        for letter in value
    )  # fmt: skip


def meta(value: object) -> Mapping[str, str]:
    """Return metadata as texts by name. Other values are written as JSON; nulls and entries beyond
    the limits are left out."""
    if not isinstance(value, dict):
        return {}
    kept: dict[str, str] = {}
    bytes_left = MAX_META_BYTES
    for key, each in value.items():
        if each is None or len(kept) == MAX_META_ENTRIES:
            continue
        written = each if isinstance(each, str) else json.dumps(each, ensure_ascii=False)
        entry = storable(str(key)), storable(written)
        bytes_left -= sum(len(part.encode()) for part in entry)
        if bytes_left < 0:
            break
        kept[entry[0]] = entry[1]
    return kept


def multiaddrs(*values: object) -> tuple[str, ...]:
    """Return the well-formed multiaddrs in these lists, each once, at most `MAX_ADDRESSES`."""
    found: dict[str, None] = {}
    for value in values:
        for each in value[:1000] if isinstance(value, list) else ():
            if isinstance(each, str) and Multiaddr.parse(each):
                found[each] = None
    return tuple(found)[:MAX_ADDRESSES]


def item(
    cid: object,
    *,
    named: object = None,
    about: object = None,
    created_at: object = None,
    size: object = None,
    origins: tuple[str, ...] = (),
    problem: str | None = None,
    file: SourceFile | None = None,
) -> SourceItem:
    """Return an item from a source's values. Without a valid CID it is an item with a problem."""
    shown = storable(cid[:MAX_LENGTH]) if isinstance(cid, str) else ""
    return SourceItem(
        cid=shown,
        name=name(named),
        meta=meta(about),
        created_at=maybe_moment(created_at),
        size=maybe_size(size),
        origins=origins,
        problem=problem or (None if is_cid(cid) else NO_CID),
        note=None if file is not None else _note(named, about),
        file=file,
    )


def _note(named: object, about: object) -> str | None:
    """Return a note on parts of name and metadata that are cut, or None."""
    lost = []
    if isinstance(named, str) and name(named) != (named.strip() or None):
        lost.append(
            f"the part of its name beyond {MAX_NAME_LENGTH} characters or that is not printable"
        )
    if isinstance(about, dict) and len(meta(about)) < sum(v is not None for v in about.values()):
        lost.append(
            f"the part of its metadata beyond {MAX_META_BYTES} bytes or {MAX_META_ENTRIES} entries"
        )
    return f"Not stored: {'; '.join(lost)}." if lost else None


def is_cid(value: object) -> bool:
    """Return whether it is a CID that on-api accepts."""
    try:
        return isinstance(value, str) and Cid.from_text(value) is not None
    except BadRequest:
        return False
