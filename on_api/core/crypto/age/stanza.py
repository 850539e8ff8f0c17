"""One stanza of a header, and the base64 in which its binary parts are written.

Knows nothing of what types of stanzas there are.
"""

from __future__ import annotations

from binascii import Error, a2b_base64, b2a_base64
from dataclasses import dataclass

from on_api.core.crypto.age.errors import BadHeader

COLUMNS = 64
MARK = "->"


@dataclass(frozen=True, slots=True)
class Stanza:
    """The file key, wrapped for one recipient. `arguments`: at least the type, printable ASCII
    without spaces."""

    arguments: tuple[str, ...]
    body: bytes

    @property
    def type(self) -> str:
        """What kind of recipient it is for."""
        return self.arguments[0]

    def encode(self) -> bytes:
        """As it stands in the header. The last line is always shorter than 64 characters."""
        text = encode_base64(self.body)
        lines = [text[start : start + COLUMNS] for start in range(0, len(text) + 1, COLUMNS)]
        return "".join(f"{line}\n" for line in (" ".join((MARK, *self.arguments)), *lines)).encode()


def encode_base64(data: bytes) -> str:
    """Without padding (RFC 4648, section 4)."""
    return b2a_base64(data, newline=False).decode().rstrip("=")


def decode_base64(text: bytes) -> bytes:
    """Raises `BadHeader` for all but the one text that `encode_base64` writes."""
    try:
        data = a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except Error:
        raise BadHeader("A part of the header is not base64.") from None
    if encode_base64(data).encode() != text:
        raise BadHeader("A part of the header is not canonical base64.")
    return data
