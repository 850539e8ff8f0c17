"""Where a chunked body may end: how much of it the parser may be given at a time, so that it never
gets a byte of the next request. Pure."""

from __future__ import annotations

from on_api.server.framing import END, check_size

_LAST = b"\n0"
"""A line that begins with a zero: no other is the last chunk's (RFC 9112, 7.1)."""


class ChunkedBody:
    """The body as far as the parser has it. Only the parser knows where it ends, and doesn't tell;
    but there is an empty line behind the last chunk's line."""

    def __init__(self) -> None:
        self._tail = b"\n"  # the head's
        """The last bytes that the parser has had: what is looked for may begin with them."""
        self._may_be_last = False
        """A line has begun with a zero."""
        self._between = 0
        """Bytes since the last one of a chunk's data."""

    def next_end(self, data: bytes, at: int) -> int:
        """Where an empty line ends behind a line that may be the last chunk's, or else the data."""
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
        """The parser has had these; `has_data`: some were a chunk's data. Raises `HeadersTooLarge`
        for too many that are not: size lines, their extensions, trailers."""
        self._tail = (self._tail + data[max(at, end - len(END)) : end])[1 - len(END) :]
        self._between = 0 if has_data else self._between + end - at
        check_size(self._between)
