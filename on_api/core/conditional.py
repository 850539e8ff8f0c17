"""Conditional requests and ranges on one representation (RFC 9110, sections 13 and 14), as a pure
function.

Knows strong ETags only: the bytes behind an id never change without their CID changing. A request
for several ranges is answered with the whole, as the RFC allows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from on_api.core.errors import PreconditionFailed, RangeNotSatisfiable

_ENTITY_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_MAX_INT64 = 2**63 - 1
_RANGE = re.compile(
    r"bytes\s*=\s*(?:(\d{1,19})-(\d{0,19})|-(\d{1,19}))\s*", re.ASCII | re.IGNORECASE
)


UNSATISFIABLE = "bytes=9223372036854775806-"
"""A range that begins after the end of any representation."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer: 200 the whole, 206 a part, 304 nothing. `offset` and `length` in bytes."""

    status: int
    offset: int
    length: int


def plan(headers: Mapping[str, str], *, etag: str, size: int) -> Plan:
    """Decide a GET or HEAD of a representation of `size` bytes with the strong `etag` (quotes
    included).

    `headers` must look names up in lower case. Raises `PreconditionFailed` (412) and
    `RangeNotSatisfiable` (416).
    """
    if_match = headers.get("if-match")
    if if_match is not None and not _lists(if_match, etag, weak=False):
        raise PreconditionFailed
    if_none_match = headers.get("if-none-match")
    if if_none_match is not None and _lists(if_none_match, etag, weak=True):
        return Plan(304, 0, 0)
    whole = Plan(200, 0, size)
    wanted = headers.get("range")
    if wanted is None or size == 0:
        return whole
    if_range = headers.get("if-range")
    if if_range is not None and if_range.strip() != etag:
        return whole
    return _part(wanted, size) or whole


def well_formed(wanted: str) -> str | None:
    """Return a `Range` header in the one spelling that every server reads; None for one that is to
    be ignored, as `plan` does: another unit, or a range that ends before it begins.

    A list of several ranges stays a list, since other servers may answer it; a suffix of no bytes
    is unsatisfiable.
    """
    unit, _, listed = wanted.partition("=")
    parts = []
    for part in listed.split(","):
        match = _RANGE.fullmatch(f"{unit}={part.strip()}")
        if match is None:
            return None
        first, last, suffix = match.groups()
        numbers = [int(number) for number in match.groups() if number]
        if max(numbers) > _MAX_INT64 or (first and last and int(last) < int(first)):
            return None
        parts.append(f"-{int(suffix)}" if suffix else f"{int(first)}-{last and int(last)}")
    return UNSATISFIABLE if parts == ["-0"] else "bytes=" + ",".join(parts)


def _part(wanted: str, size: int) -> Plan | None:
    match = _RANGE.fullmatch(wanted)
    if match is None:
        return None  # another unit, several ranges or nonsense: ignored, as the RFC asks
    first, last, suffix = match.groups()
    if suffix is not None:
        length = min(int(suffix), size)
        if length == 0:
            raise RangeNotSatisfiable(size)
        return Plan(206, size - length, length)
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None
    if start >= size:
        raise RangeNotSatisfiable(size)
    return Plan(206, start, end - start + 1)


def _lists(header: str, etag: str, *, weak: bool) -> bool:
    """Return whether a list of entity tags contains ours; `weak` comparison ignores the W/ mark."""
    if header.strip() == "*":
        return True
    ours = etag.strip('"')
    return any(tag == ours and (weak or not mark) for mark, tag in _ENTITY_TAG.findall(header))
