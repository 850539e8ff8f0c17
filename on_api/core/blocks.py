"""Bytes that stream in large blocks: their type, and how large blocks are while few or many stream
at once. Knows nothing of what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

Bytes = bytes | bytearray | memoryview
"""What is read without being copied, and never written to again. Of a `memoryview`: one dimension,
of bytes, contiguous."""

MOST_BYTES = 1024 * 1024
"""Of the blocks that are worth a thread's visit."""
LEAST_BYTES = 16 * 1024
TOGETHER_BYTES = 8 * 1024 * 1024
"""Of all that stream at once, one block each, until that would make blocks of `LEAST_BYTES`. Each
stream holds up to four: one being received, one ready, one hashed, one on its way out."""


class BlockSize:
    """How many bytes a block should have: the more streams there are, the fewer, so that they all
    together hold no more memory than a few do."""

    def __init__(self) -> None:
        self._streams = 0

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """One more stream."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def __call__(self) -> int:
        """Bytes of a block that begins now."""
        share = TOGETHER_BYTES // max(1, self._streams)
        return max(LEAST_BYTES, min(MOST_BYTES, share))
