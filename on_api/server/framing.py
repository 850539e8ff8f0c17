"""Rules for where a request ends, applied to its head before the parser gets it.

A head about which two programs could disagree is refused (RFC 9112, 6.3 and 11.2), so that no body
is ever read as the next request. Offers that on-api doesn't serve (`Upgrade`) are removed from the
head. Bytes in, bytes out: knows nothing of connections and answers. Errors of a head's grammar
alone (bare line feeds, folded lines, spaces before a colon) are left to the parser to refuse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from on_api.core.errors import (
    BadRequest,
    HeadersTooLarge,
    MethodNotAllowed,
    UnknownTransferCoding,
)

MAX_HEAD_BYTES = 64 * 1024
"""Upper bound for a request line with its headers, for trailers, and for a chunk's size line."""
CHUNKED = -1
"""Stands for a body's length: the body comes in chunks, and the last one marks its end."""
END = b"\r\n\r\n"
"""End of a head, and of the last chunk with its trailers."""

_VERSIONS = (b" HTTP/1.1", b" HTTP/1.0")
_METHODS = {"Allow": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"}
_LINE_SO_FAR = re.compile(rb"[A-Z-]{0,32}(?: (?:[!-~\x80-\xff]+(?: [HTP/01.]{0,8})?)?)?\r?")
_DECISIVE = re.compile(rb"\r\n(host|content-length|transfer-encoding|upgrade):", re.IGNORECASE)
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*(?=\r\n)", re.IGNORECASE)
# Values are stripped before they are matched: a pattern with several ways to match blanks tries
# them all, which takes days for a head with 60,000.
_HOST = re.compile(rb"(?:[a-z0-9._~!$&'()*+,;=%-]*|\[[0-9a-f:.]+\])(?::[0-9]*)?", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_AUTHORITY = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


def read_head(head: bytes) -> tuple[bytes, int]:
    """Return the head to give to the parser, and the length of the body in bytes, or `CHUNKED`.

    `head` goes from the request line to the empty line. Raises `BadRequest` if it is ambiguous or
    not HTTP/1, `MethodNotAllowed` for CONNECT, `UnknownTransferCoding`, `HeadersTooLarge`.
    """
    line = head[: head.index(b"\r\n")]
    if not line.endswith(_VERSIONS) or line.count(b" ") != 2:
        raise BadRequest("The request line must have the form METHOD TARGET HTTP/1.1.")
    if line.startswith(b"CONNECT "):
        raise MethodNotAllowed("This server is not a proxy.", headers=_METHODS)
    is_current = line.endswith(b"1")
    hosts: list[bytes] = []
    others: dict[bytes, list[bytes]] = {}
    for found in _DECISIVE.finditer(head):
        # Stripped of blanks. It may still hold a bare \r, which the parser refuses.
        value = head[found.end() : head.index(b"\r\n", found.end())].strip(b" \t").lower()
        name = found[1].lower()
        (hosts if name == b"host" else others.setdefault(name, [])).append(value)
    if len(hosts) > 1 or (is_current and not hosts):
        raise BadRequest("A request must have exactly one Host header.")
    if hosts and not is_host(hosts[0]):
        raise BadRequest("The Host header must have the form NAME or NAME:PORT.")
    length = _read_length(others, is_current=is_current) if others else 0
    if b"upgrade" in others:
        # No upgrade is supported, so the offer is ignored (RFC 9110, 7.8). The parser would take it
        # as accepted, and take what follows for another protocol's bytes instead of a body.
        head = _UPGRADE.sub(b"", head)
    if not line.isascii():
        # A URL is ASCII (RFC 3986); other bytes are encoded, which means the same to the node.
        head = _NOT_ASCII.sub(_percent_encoded, line) + head[len(line) :]
        check_size(len(head))  # encoding has made it longer
    return head, length


def is_host(value: bytes) -> bool:
    """Return whether `value`, stripped of blanks, is valid as `Host` (RFC 9110, 7.2)."""
    return _HOST.fullmatch(value) is not None


def check_beginning(text: bytes) -> None:
    """Raise `BadRequest` if `text` can't be the beginning of a head. A client that speaks another
    protocol would wait for an answer while the server waits for the rest."""
    line, end, _ = text.partition(b"\r\n")
    is_possible = line.endswith(_VERSIONS) if end else _LINE_SO_FAR.fullmatch(line)
    if not is_possible:
        raise BadRequest("The request line must have the form METHOD TARGET HTTP/1.1.")


def check_size(size: int) -> None:
    """Raise `HeadersTooLarge` if `size` bytes that belong to no body are too many."""
    if size > MAX_HEAD_BYTES:
        raise HeadersTooLarge


def path_in(head: bytes) -> str:
    """Return the path of a head's request line, even of a malformed one; empty if there is none."""
    words = head[:MAX_HEAD_BYTES].partition(b"\r\n")[0].split(b" ")
    target = words[1] if len(words) > 1 else b""
    return path_of(target)


def path_of(target: bytes) -> str:
    """Return the path of a request's target, still encoded as it was sent."""
    found = _AUTHORITY.match(target)
    path = target[found.end() :] if found else target
    return path.partition(b"?")[0].decode("latin-1")


def _read_length(values: Mapping[bytes, list[bytes]], *, is_current: bool) -> int:
    """Return the body's length in bytes, or `CHUNKED`. `values`: by header name; all lower case."""
    lengths = values.get(b"content-length", [])
    if codings := values.get(b"transfer-encoding"):
        if lengths:
            raise BadRequest("A request must not have both Content-Length and Transfer-Encoding.")
        if not is_current:
            raise BadRequest("HTTP/1.0 requests must not have a Transfer-Encoding.")
        _check_coding(codings)
        return CHUNKED
    if not lengths:
        return 0
    if len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise BadRequest(
            "A request must have at most one Content-Length, consisting of digits only."
        )
    return int(lengths[0])


def _check_coding(values: list[bytes]) -> None:
    if values == [b"chunked"]:
        return
    *others, last = [coding.strip(b" \t") for coding in b",".join(values).split(b",")]
    if last != b"chunked" or b"chunked" in others or not all(map(_TOKEN.fullmatch, others)):
        raise BadRequest("A Transfer-Encoding must end with chunked and contain it only once.")
    raise UnknownTransferCoding


def _percent_encoded(found: re.Match[bytes]) -> bytes:
    return b"%%%02X" % found[0][0]
