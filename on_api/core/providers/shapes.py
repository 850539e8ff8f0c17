"""Reading what other services answer: every value is a stranger's, and comes out in a shape and a
size that can be kept. Raises `SourceMalformed` alone."""

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
    MAX_META,
    MAX_META_BYTES,
    MAX_NAME,
    SourceFile,
    SourceItem,
)

MAX_ROWS = 10_000
"""Of one page: ten times what anybody is asked for."""
_MAX_SIZE = 2**62
NO_CID = "The source names no valid CID."


def row(value: object) -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise SourceMalformed
    return value


def rows(value: object) -> Sequence[Mapping[str, Any]]:
    """A list of JSON objects."""
    if not isinstance(value, list) or len(value) > MAX_ROWS:
        raise SourceMalformed
    return [row(each) for each in value]


def text(value: object) -> str:
    """A text that has to be there."""
    if not isinstance(value, str):
        raise SourceMalformed
    return value


def whole(value: object) -> int:
    """A number of things, not negative."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_SIZE:
        raise SourceMalformed
    return value


def moment(value: object) -> datetime:
    """RFC 3339, of any precision; UTC where no offset is given."""
    try:
        found = datetime.fromisoformat(text(value)[:64])
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise SourceMalformed("The source names no valid date.") from error


def maybe_moment(value: object) -> datetime | None:
    """The same; None for what is none."""
    try:
        return moment(value)
    except SourceMalformed:
        return None


def maybe_size(value: object) -> int | None:
    """A number of bytes, or its digits as text; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    try:
        return whole(value)
    except SourceMalformed:
        return None


def name(value: object) -> str | None:
    """A name without control characters, cut at `MAX_NAME`; None for none."""
    if not isinstance(value, str):
        return None
    return storable(value[: 4 * MAX_NAME], blank=" ").strip()[:MAX_NAME] or None


def storable(value: str, *, blank: str = "") -> str:
    """Without what a database or a header can't hold: control characters become `blank`."""
    if value.isascii() and value.isprintable():
        return value
    return "".join(
        "\ufffd" if "\ud800" <= letter <= "\udfff"
        else blank if unicodedata.category(letter) == "Cc"
        else letter
        for letter in value
    )  # fmt: skip


def meta(value: object) -> Mapping[str, str]:
    """Texts by name. Other values are written as JSON, nulls left out, and what is over the bounds
    as well."""
    if not isinstance(value, dict):
        return {}
    kept: dict[str, str] = {}
    room = MAX_META_BYTES
    for key, each in value.items():
        if each is None or len(kept) == MAX_META:
            continue
        written = each if isinstance(each, str) else json.dumps(each, ensure_ascii=False)
        entry = storable(str(key)), storable(written)
        room -= sum(len(part.encode()) for part in entry)
        if room < 0:
            break
        kept[entry[0]] = entry[1]
    return kept


def multiaddrs(*values: object) -> tuple[str, ...]:
    """Those that may be dialled at all, each once."""
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
    """An item from what a source says of it. Without a valid CID it is one with a problem."""
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
    """What of a name and metadata does not fit."""
    lost = []
    if isinstance(named, str) and name(named) != (named.strip() or None):
        lost.append(f"its name, beyond {MAX_NAME} characters or what can't be printed")
    if isinstance(about, dict) and len(meta(about)) < sum(v is not None for v in about.values()):
        lost.append(f"its metadata, beyond {MAX_META_BYTES} bytes or {MAX_META} entries")
    return f"Not kept: {'; '.join(lost)}." if lost else None


def is_cid(value: object) -> bool:
    """Whether it is one that on-api accepts."""
    try:
        return isinstance(value, str) and Cid.from_text(value) is not None
    except BadRequest:
        return False
