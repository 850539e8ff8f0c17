"""Checks whether a streamed CAR or tar is complete at its end.

When a block is missing Kubo ends either with a text and a regular end of the body: only the format
tells. Pure.
"""

from __future__ import annotations

_V0_START, _V1_START = 0x12, 0x01
"""First bytes of a binary CID, and so of each section of a CAR except its header."""
_MAX_VARINT_BYTES = 9
_TAR_BLOCK_BYTES = 512
_TAR_END_BYTES = 2 * _TAR_BLOCK_BYTES
"""Bytes of zeros at the end of a tar."""


class CarEnding:
    """Follows a CARv1's sections without parsing their content."""

    def __init__(self) -> None:
        self._left = 0
        """Bytes of the present section that are still to come."""
        self._length = self._shift = 0
        self._starts = False
        """True if a section's length is known but not yet its first byte."""
        self._is_header = True
        self._broken = False

    def feed(self, chunk: bytes) -> None:
        """See the next bytes."""
        position, size = 0, len(chunk)
        while position < size and not self._broken:
            if self._starts:
                self._starts = False
                known = self._is_header or chunk[position] in {_V0_START, _V1_START}
                self._is_header = False
                self._broken = not known
            if self._left:
                step = min(self._left, size - position)
                self._left -= step
                position += step
                continue
            byte = chunk[position]
            position += 1
            self._length |= (byte & 0x7F) << self._shift
            self._shift += 7
            if byte < 0x80:
                self._left, self._starts = self._length, True
                self._broken = self._length == 0
                self._length = self._shift = 0
            elif self._shift >= 7 * _MAX_VARINT_BYTES:
                self._broken = True

    @property
    def is_whole(self) -> bool:
        """True if a section has just ended, and everything so far was sections."""
        return not (self._broken or self._left or self._shift or self._is_header)


class TarEnding:
    """Looks for the two blocks of zeros at the end of a tar."""

    def __init__(self) -> None:
        self._size = 0
        self._last = b""

    def feed(self, chunk: bytes) -> None:
        """See the next bytes."""
        self._size += len(chunk)
        self._last = (self._last + chunk[-_TAR_END_BYTES:])[-_TAR_END_BYTES:]

    @property
    def is_whole(self) -> bool:
        """True if a tar may end here."""
        return self._size % _TAR_BLOCK_BYTES == 0 and self._last == bytes(_TAR_END_BYTES)


def ending_of(media_type: bytes) -> CarEnding | TarEnding | None:
    """Return the check for an answer of this Content-Type; None for one whose length is proof
    enough."""
    kind = media_type.partition(b";")[0].strip()
    if kind == b"application/vnd.ipld.car":
        return CarEnding()
    if kind == b"application/x-tar":
        return TarEnding()
    return None
