"""Where a request ends: the rules by which its head tells that, before the parser is given it.

A head about which two programs could disagree is refused (RFC 9112, 6.3 and 11.2), so that no body
is ever read as the next request. What a head offers and on-api doesn't serve is taken out of it.
Bytes in, bytes out: knows nothing of connections and answers. What is wrong with a head's grammar
alone (bare line feeds, folded lines, spaces before a colon) is the parser's to refuse.
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
"""Most bytes of a request line with its headers, of trailers, or of a chunk's size line."""
CHUNKED = -1
"""In place of a body's length: it comes in chunks, and its end is told by the last one."""
END = b"\r\n\r\n"
"""End of a head, and of the last chunk with its trailers."""

_VERSIONS = (b" HTTP/1.1", b" HTTP/1.0")
_METHODS = {"Allow": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"}
_LINE_SO_FAR = re.compile(rb"[A-Z-]{0,32}(?: (?:[!-~\x80-\xff]+(?: [HTP/01.]{0,8})?)?)?\r?")
_DECISIVE = re.compile(rb"\r\n(host|content-length|transfer-encoding|upgrade):", re.IGNORECASE)
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*(?=\r\n)", re.IGNORECASE)
# A value is looked at without the blanks around it: a pattern that has several ways to take blanks
# tries them all, which takes days where a head has 60,000.
_HOST = re.compile(rb"(?:[a-z0-9._~!$&'()*+,;=%-]*|\[[0-9a-f:.]+\])(?::[0-9]*)?", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_AUTHORITY = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


def read_head(head: bytes) -> tuple[bytes, int]:
    """A head as the parser is to have it, and the length of the body behind it, or `CHUNKED`.

    `head` goes from the request line to the empty line. Raises `BadRequest` for a head that is
    ambiguous or no HTTP/1, `MethodNotAllowed` for CONNECT, `UnknownTransferCoding`,
    `HeadersTooLarge`.
    """
    line = head[: head.index(b"\r\n")]
    if not line.endswith(_VERSIONS) or line.count(b" ") != 2:
        raise BadRequest("The request line must read: METHOD TARGET HTTP/1.1.")
    if line.startswith(b"CONNECT "):
        raise MethodNotAllowed("This is no proxy.", headers=_METHODS)
    is_current = line.endswith(b"1")
    hosts: list[bytes] = []
    others: dict[bytes, list[bytes]] = {}
    for found in _DECISIVE.finditer(head):
        # A value without the blanks around it. It may hold a bare \r, which the parser refuses.
        value = head[found.end() : head.index(b"\r\n", found.end())].strip(b" \t").lower()
        name = found[1].lower()
        (hosts if name == b"host" else others.setdefault(name, [])).append(value)
    if len(hosts) > 1 or (is_current and not hosts):
        raise BadRequest("A request has one header Host.")
    if hosts and not is_host(hosts[0]):
        raise BadRequest("The header Host must read: NAME, or NAME:PORT.")
    length = _read_length(others, is_current=is_current) if others else 0
    if b"upgrade" in others:
        # Nothing is offered to upgrade to, so the offer is ignored (RFC 9110, 7.8). The parser
        # would take it as accepted, and what follows for no body but another protocol's bytes.
        head = _UPGRADE.sub(b"", head)
    if not line.isascii():
        # A URL has ASCII only (RFC 3986); what is meant by others is as clear as it is to the node.
        head = _NOT_ASCII.sub(_percent_encoded, line) + head[len(line) :]
        check_size(len(head))  # it has grown, and no URL may be over that
    return head, length


def is_host(value: bytes) -> bool:
    """Whether it can be the value of `Host`, without the blanks around it (RFC 9110, 7.2)."""
    return _HOST.fullmatch(value) is not None


def check_beginning(text: bytes) -> None:
    """Raise `BadRequest` for the beginning of a head that can't become one: whoever speaks another
    protocol doesn't wait for us to wait."""
    line, end, _ = text.partition(b"\r\n")
    is_possible = line.endswith(_VERSIONS) if end else _LINE_SO_FAR.fullmatch(line)
    if not is_possible:
        raise BadRequest("The request line must read: METHOD TARGET HTTP/1.1.")


def check_size(size: int) -> None:
    """Raise `HeadersTooLarge` for so many bytes that are no body."""
    if size > MAX_HEAD_BYTES:
        raise HeadersTooLarge


def path_in(head: bytes) -> str:
    """The path that a head asks for, however damaged it is; empty where there is none."""
    words = head[:MAX_HEAD_BYTES].partition(b"\r\n")[0].split(b" ")
    target = words[1] if len(words) > 1 else b""
    return path_of(target)


def path_of(target: bytes) -> str:
    """The path of a request's target, as it was sent."""
    found = _AUTHORITY.match(target)
    path = target[found.end() :] if found else target
    return path.partition(b"?")[0].decode("latin-1")


def _read_length(values: Mapping[bytes, list[bytes]], *, is_current: bool) -> int:
    """`values`: by the header's name, both in lower case."""
    lengths = values.get(b"content-length", [])
    if codings := values.get(b"transfer-encoding"):
        if lengths:
            raise BadRequest("A request has Content-Length or Transfer-Encoding, not both.")
        if not is_current:
            raise BadRequest("HTTP/1.0 has no Transfer-Encoding.")
        _check_coding(codings)
        return CHUNKED
    if not lengths:
        return 0
    if len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise BadRequest("A request has at most one Content-Length, of digits alone.")
    return int(lengths[0])


def _check_coding(values: list[bytes]) -> None:
    if values == [b"chunked"]:
        return
    *others, last = [coding.strip(b" \t") for coding in b",".join(values).split(b",")]
    if last != b"chunked" or b"chunked" in others or not all(map(_TOKEN.fullmatch, others)):
        raise BadRequest("A Transfer-Encoding ends with chunked, which is named once.")
    raise UnknownTransferCoding


def _percent_encoded(found: re.Match[bytes]) -> bytes:
    return b"%%%02X" % found[0][0]
