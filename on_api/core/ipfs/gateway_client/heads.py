"""Fast reading of the node's response heads as it usually writes them, without a parser.

Strict: a head that is not quite as expected, or may frame a body in another way, is left to the
parser. Pure.
"""

from __future__ import annotations

import re
from functools import lru_cache

Headers = list[tuple[bytes, bytes]]

MAX_COMMON_BYTES = 16 * 1024
"""Bytes of a head above which it is left to the parser, which bounds it."""
MAX_LENGTH_DIGITS = 18

_LENGTH = b"\r\nContent-Length: "
_START = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9]) [!-~ ]*")
_WITHOUT_BODY = {204, 205, 304}
_FRAMING = {b"content-length", b"transfer-encoding", b"connection", b"trailer", b"upgrade"}
_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
_VALUE = bytes([*range(0x20, 0x7F), *range(0x80, 0x100), 0x09])
_JOINED = b"access-control-"
"""Prefix of list headers whose items the node sends in lines of their own."""


def read_common_head(data: bytes) -> tuple[int, Headers, int, int] | None:
    """Return status, headers (names in lower case), length of the body and its start, if `data`
    begins with the complete head of an answer to a GET whose end is given by one Content-Length and
    nothing else. None: use the parser."""
    end = data.find(b"\r\n\r\n", 0, MAX_COMMON_BYTES)
    cut = data.find(_LENGTH, 0, end)
    if end < 0 or cut < 0:
        return None
    # Two thirds of the head come before the length, and are the same in most answers.
    beginning = _read_beginning(data[:cut])
    lines = _read_lines(data[cut + 2 : end])
    if beginning is None or lines is None:
        return None
    (status, headers), (length, *others) = beginning, lines
    digits = length[1]
    if not digits.isdigit() or len(digits) > MAX_LENGTH_DIGITS:
        return None
    for name, _ in others:
        if name in _FRAMING:
            return None
    return status, headers + lines, int(digits), end + 4


@lru_cache(64)
def _read_beginning(raw: bytes) -> tuple[int, Headers] | None:
    """Return status and headers, repeated ones of CORS joined; None if the parser is needed."""
    first, _, rest = raw.partition(b"\r\n")
    start = _START.fullmatch(first)
    if start is None or (status := int(start[1])) in _WITHOUT_BODY:
        return None
    read = _read_lines(rest) if rest else []
    if read is None:
        return None
    headers: Headers = []
    for name, value in read:
        if name in _FRAMING:
            return None
        if headers and name == headers[-1][0] and name.startswith(_JOINED):
            headers[-1] = name, headers[-1][1] + b", " + value
        else:
            headers.append((name, value))
    return status, headers


def _read_lines(raw: bytes) -> Headers | None:
    """Return names and values; None if a line isn't well formed."""
    lines = raw.split(b"\r\n")
    if len(raw.translate(None, _VALUE)) != 2 * (len(lines) - 1):
        return None  # a CR or LF within a line, or a byte that no value may have
    read: Headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        lower = _lower(name)
        if lower is None or not colon:
            return None
        read.append((lower, value.strip(b" \t")))
    return read


@lru_cache(256)
def _lower(name: bytes) -> bytes | None:
    """Return a header's name in lower case; None if it is not a name. (A folded line begins with a
    space, which no name has.)"""
    lower = name.lower()
    return None if not lower or lower.translate(None, _TOKEN) else lower
