"""Cache of whole answers of the node's gateway: content-addressed answers never change.

Holds bytes, not rights: permission is decided for each request. On the event loop only.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from on_api.core.ipfs.formats.cid import RAW, SHA2_256, Cid
from on_api.core.ipfs.gateway_client.heads import Headers

MAX_ANSWER_BYTES = 1024 * 1024
FILLING_DIVISOR = 4
"""Divisor: a quarter of the memory may be taken by answers that are still arriving."""
ENTRY_BYTES = 4096
"""Bytes that an entry costs beside its data: objects."""

_SIMPLE_RANGE = re.compile(rb"bytes=([0-9]{1,15})?-([0-9]{1,15})?")
_UNTOUCHED = {b"range", b"if-none-match", b"accept"}
_IN_304 = {
    b"cache-control", b"content-location", b"content-security-policy", b"etag",
    b"x-content-type-options", b"x-ipfs-path",
}  # fmt: skip

AnswerKey = tuple[bytes, bytes, bytes]
"""Path and query as received, and Accept: all that selects a representation."""


@dataclass(frozen=True, slots=True)
class HotAnswer:
    """Whole 200 response to a plain GET."""

    root: str
    """Normalised CID of the root."""
    headers: Headers
    body: bytes
    etag: bytes
    head: bytes = field(init=False)
    """Status line and headers as sent over the wire, without those that belong to a single
    answer."""

    def __post_init__(self) -> None:
        lines = [b"HTTP/1.1 200 OK", *(name + b": " + value for name, value in self.headers), b""]
        object.__setattr__(self, "head", b"\r\n".join(lines))

    def to(
        self, method: str, headers: Mapping[bytes, bytes]
    ) -> tuple[int, Sequence[tuple[bytes, bytes]], bytes] | None:
        """Return status, headers and body as the node would answer; None where the node must be
        asked."""
        if headers.keys() - _UNTOUCHED:
            return None
        known = headers.get(b"if-none-match")
        if known is not None and _is_among(self.etag, known):
            kept = _IN_304
            return 304, [h for h in self.headers if h[0] in kept or _is_cors(h[0])], b""
        wanted = headers.get(b"range")
        if wanted is None:
            return 200, self.headers, b"" if method == "HEAD" else self.body
        span = _span(wanted, len(self.body))
        if span is None:
            return None
        first, end = span
        content_range = f"bytes {first}-{end - 1}/{len(self.body)}".encode()
        part_headers = [h for h in self.headers if h[0] != b"content-length"]
        part_headers += [
            (b"content-length", b"%d" % (end - first)),
            (b"content-range", content_range),
        ]
        return 206, part_headers, b"" if method == "HEAD" else self.body[first:end]


class HotAnswers:
    """Cache of the answers used most recently, up to `capacity` bytes."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._known: OrderedDict[AnswerKey, HotAnswer] = OrderedDict()
        self._size = 0
        self._filling = 0

    @property
    def size(self) -> int:
        """Bytes in use."""
        return self._size

    def get(self, key: AnswerKey) -> HotAnswer | None:
        """Return the cached answer, or None; it becomes the last to be dropped."""
        answer = self._known.get(key)
        if answer is not None:
            self._known.move_to_end(key)
        return answer

    def reserve(self, key: AnswerKey, headers: Headers, length: int) -> bool:
        """Reserve memory for gathering an answer of `length` bytes. Returns whether there is
        enough; if so, `settle` has to follow."""
        cost = _cost(key, headers, length)
        if cost > min(MAX_ANSWER_BYTES, self._capacity // FILLING_DIVISOR - self._filling):
            return False
        self._filling += cost
        return True

    def settle(self, key: AnswerKey, headers: Headers, length: int) -> None:
        """End the gathering of an answer, complete or not; arguments as in `reserve`."""
        self._filling -= _cost(key, headers, length)

    def keep(self, key: AnswerKey, answer: HotAnswer) -> None:
        """Cache an answer, dropping others for it."""
        before = self._known.pop(key, None)
        if before is not None:
            self._size -= _cost_of(key, before)
        self._known[key] = answer
        self._size += _cost_of(key, answer)
        while self._size > self._capacity:
            self._size -= _cost_of(*self._known.popitem(last=False))


def is_constant(method: str, status: int, headers: Mapping[bytes, bytes]) -> bool:
    """Return whether an answer to a request without conditions will never change."""
    return (
        method == "GET"
        and status == 200
        and b"immutable" in headers.get(b"cache-control", b"")
        and headers.get(b"etag", b"").startswith(b'"')
        and headers.get(b"accept-ranges") == b"bytes"
    )


def is_authentic(root: Cid, etag: bytes, body: bytes) -> bool:
    """Return whether `body` matches its CID, as far as a single hash can tell: only a single
    block's can be checked."""
    if root.codec != RAW or root.hash_code != SHA2_256:
        return True
    if etag.strip(b'"').removesuffix(b".raw") != str(root).encode():
        return True
    return hashlib.sha256(body).digest() == root.digest


def _span(wanted: bytes, size: int) -> tuple[int, int] | None:
    """Return the half-open range of a simple `Range` header; None for any other."""
    match = _SIMPLE_RANGE.fullmatch(wanted)
    if match is None:
        return None
    first, last = match.groups()
    if first is None:
        if last is None or not 0 < int(last) <= size:  # the node answers a longer one with an error
            return None
        span = size - int(last), size
    else:
        span = int(first), size if last is None else min(size, int(last) + 1)
    return span if span[0] < span[1] else None


def _is_among(etag: bytes, known: bytes) -> bool:
    """Return whether If-None-Match names the tag, compared weakly (RFC 9110, 13.1.2)."""
    listed = [tag.strip().removeprefix(b"W/") for tag in known.split(b",")]
    return known.strip() == b"*" or etag in listed


def _is_cors(name: bytes) -> bool:
    return name.startswith(b"access-control-")


def _cost_of(key: AnswerKey, answer: HotAnswer) -> int:
    return _cost(key, answer.headers, len(answer.body))


def _cost(key: AnswerKey, headers: Headers, length: int) -> int:
    # The client chooses path and query, which may be long, and the node repeats them.
    header_bytes = sum(len(name) + len(value) for name, value in headers)
    return length + sum(map(len, key)) + 2 * header_bytes + ENTRY_BYTES  # twice: `HotAnswer.head`
