"""Limits how much of a chunked body the parser is given at a time, so that it never gets a byte of
the next request. Pure."""

from __future__ import annotations

from on_api.server.framing import END, check_size

_LAST = b"\n0"
"""Beginning of the last chunk's line: no other line begins with a zero (RFC 9112, 7.1)."""


class ChunkedBody:
    """The part of a chunked body that the parser has had. Only the parser knows where the body
    ends, and it does not tell; but an empty line always follows the last chunk's line."""

    def __init__(self) -> None:
        self._tail = b"\n"  # the end of the head
        """Last bytes that the parser has had; a searched pattern may begin in them."""
        self._may_be_last = False
        """True if a line that begins with a zero has been seen, and no empty line since."""
        self._between = 0
        """Bytes since the last byte of a chunk's data."""

    def next_end(self, data: bytes, at: int) -> int:
        """Return the index behind the next empty line that follows a line that may be the last
        chunk's; the length of `data` if there is none."""
        start = at
        if not self._may_be_last:
            if self._tail[-1:] + data[at : at + 1] != _LAST:
                start = data.find(_LAST, at)
            if start < 0:
                return len(data)
            self._may_be_last = True
        border = self._tail + data[at : at + len(END) - 1] if start == at else b""
        begun = border.find(END)
        if begun >= 0:
            end = at + begun + len(END) - len(self._tail)
        elif (found := data.find(END, start)) >= 0:
            end = found + len(END)
        else:
            return len(data)
        self._may_be_last = False
        return end

    def passed(self, data: bytes, at: int, end: int, *, has_data: bool) -> None:
        """Record that the parser has had `data[at:end]`; `has_data`: it held bytes of a chunk's
        data. Raises `HeadersTooLarge` for too many bytes without: size lines, their extensions,
        trailers."""
        self._tail = (self._tail + data[max(at, end - len(END)) : end])[1 - len(END) :]
        self._between = 0 if has_data else self._between + end - at
        check_size(self._between)
