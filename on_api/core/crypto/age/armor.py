"""Reading of ASCII armor: strict PEM (RFC 7468, figure 3) with the one label that age uses.

Lines may end with CRLF, and white space may surround the block; everything else must be exactly as
an encoder writes it.
"""

from __future__ import annotations

from binascii import Error, a2b_base64, b2a_base64

from on_api.core.crypto.age.errors import BadArmor
from on_api.core.streams.blocks import Bytes

BEGIN = b"-----BEGIN AGE ENCRYPTED FILE-----"
END = b"-----END AGE ENCRYPTED FILE-----"
COLUMNS = 64
WHITE_SPACE = b" \t\r\n"


class ArmorReader:
    """Takes armor in pieces of any size and returns the bytes inside. Keeps less than a line."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._begun = self._ended = False
        self._short = False
        """True once a line that is not full was read: only the end may follow."""

    @property
    def held(self) -> int:
        """Number of bytes that wait for the rest of their line."""
        return len(self._held)

    def update(self, data: Bytes) -> bytes:
        """Return the bytes of all lines that are complete by now. Raises `BadArmor`."""
        self._held += data
        if not self._begun:
            self._begin()
        out = self._lines() if self._begun else b""
        if self._ended:
            if self._held.strip(WHITE_SPACE):
                raise BadArmor("There is data after the end of the armor.")
            self._held.clear()
        return out

    def finish(self) -> None:
        """Finish. Raises `BadArmor` unless the armor's end was seen."""
        if not self._ended:
            raise BadArmor("The armor has no end line.")

    def _begin(self) -> None:
        self._held = self._held.lstrip(WHITE_SPACE)
        line, newline, rest = self._held.partition(b"\n")
        if newline:
            if line.removesuffix(b"\r") != BEGIN:
                raise BadArmor("The first line is not the header of an armored age file.")
            self._begun = True
            self._held = rest
        elif len(line) > len(BEGIN) + 1:
            raise BadArmor("The first line is not the header of an armored age file.")

    def _lines(self) -> bytes:
        out = bytearray()
        start = 0
        while not self._ended:
            if self._held.startswith(b"-", start):
                if len(self._held) < start + len(END):
                    break
                if not self._held.startswith(END, start):
                    raise BadArmor("The last line is not the end line of an armored age file.")
                self._ended = True
                start += len(END)
                break
            end = self._held.find(b"\n", start)
            if end < 0:
                break
            out += self._decode(bytes(self._held[start:end]).removesuffix(b"\r"))
            start = end + 1
        del self._held[:start]
        if not self._ended and len(self._held) > COLUMNS + 1:
            raise BadArmor("A line of the armor is too long.")
        return bytes(out)

    def _decode(self, line: bytes) -> bytes:
        if self._short:
            raise BadArmor("A line of the armor is too short.")
        try:
            data = a2b_base64(line, strict_mode=True)
        except Error:
            raise BadArmor("A line of the armor is not base64.") from None
        if not data or len(line) > COLUMNS or b2a_base64(data, newline=False) != line:
            raise BadArmor("A line of the armor is empty, too long, or not canonical base64.")
        self._short = len(line) < COLUMNS or line.endswith(b"=")
        return data
