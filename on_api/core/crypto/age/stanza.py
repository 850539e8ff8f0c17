"""Stanzas of a header, and the base64 in which their binary parts are written.

Knows nothing of the types of stanzas.
"""

from __future__ import annotations

from binascii import Error, a2b_base64, b2a_base64
from dataclasses import dataclass

from on_api.core.crypto.age.errors import BadHeader

COLUMNS = 64
MARK = "->"


@dataclass(frozen=True, slots=True)
class Stanza:
    """The file key, wrapped for one recipient. `arguments` has at least the type; each is printable
    ASCII without spaces."""

    arguments: tuple[str, ...]
    body: bytes

    @property
    def type(self) -> str:
        """Type of the recipient."""
        return self.arguments[0]

    def encode(self) -> bytes:
        """Return the stanza as it is written in the header. The last line always has less than 64
        characters."""
        text = encode_base64(self.body)
        lines = [text[start : start + COLUMNS] for start in range(0, len(text) + 1, COLUMNS)]
        return "".join(f"{line}\n" for line in (" ".join((MARK, *self.arguments)), *lines)).encode()


def encode_base64(data: bytes) -> str:
    """Encode in base64 without padding (RFC 4648, section 4)."""
    return b2a_base64(data, newline=False).decode().rstrip("=")


def decode_base64(text: bytes) -> bytes:
    """Decode. Raises `BadHeader` for everything but the one text that `encode_base64` writes."""
    try:
        data = a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except Error:
        raise BadHeader("A part of the header is not base64.") from None
    if encode_base64(data).encode() != text:
        raise BadHeader("A part of the header is not canonical base64.")
    return data
