"""Bodies that are new to every server, yet reproducible: made from a seed, so that another process
can compare what was sent byte by byte, at the cost of a `memcmp`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

PIECE_BYTES = 1024 * 1024
STAMP_BYTES = 16
_NUMBERS = 2**32


@dataclass(frozen=True)
class Body:
    """`size` random bytes. Bodies of one seed and different numbers have no block in common: each
    piece begins with a stamp of its own."""

    seed: str
    number: int
    size: int

    def pieces(self) -> Iterator[bytes]:
        """Yield all of it, in pieces of 1 MiB."""
        common = _common(self.seed)
        for place, start in enumerate(range(0, self.size, PIECE_BYTES)):
            length = min(PIECE_BYTES, self.size - start)
            yield (self._stamp(place) + common[STAMP_BYTES:length])[:length]

    def holds(self, data: bytes, position: int) -> bool:
        """Return whether the body has `data` at `position`."""
        if position + len(data) > self.size:
            return False
        common, done = _common(self.seed), 0
        while done < len(data):
            place, offset = divmod(position + done, PIECE_BYTES)
            if offset < STAMP_BYTES:
                expected = self._stamp(place)[offset : offset + len(data) - done]
                if not data.startswith(expected, done):
                    return False
                done += len(expected)
                continue
            length = min(PIECE_BYTES - offset, len(data) - done)
            # No copy if all of it is in one piece, as is nearly always the case.
            part = data if length == len(data) else data[done : done + length]
            if not common.startswith(part, offset):
                return False
            done += length
        return True

    def whole(self) -> bytes:
        """Return all of it at once; for small bodies."""
        return b"".join(self.pieces())

    def _stamp(self, place: int) -> bytes:
        return (self.number * _NUMBERS + place).to_bytes(STAMP_BYTES, "big")


@cache
def _common(seed: str) -> bytes:
    return random.Random(seed).randbytes(PIECE_BYTES)  # noqa: S311 (bodies, no secrets)
