"""Layout of a binary age file: its sizes, and the bytes that a range of the plaintext needs.

Pure arithmetic. "Plain" offsets and sizes are the plaintext's, "sealed" ones the file's, in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from on_api.core.crypto.aead import TAG_BYTES
from on_api.core.crypto.age.errors import BadPayload, TruncatedPayload

CHUNK_BYTES = 64 * 1024
SEALED_CHUNK_BYTES = CHUNK_BYTES + TAG_BYTES
PAYLOAD_NONCE_BYTES = 16


def sealed_size(plaintext_size: int, header_size: int) -> int:
    """Return the bytes of the whole file. Every chunk has a tag, and there is always one chunk."""
    chunks = max(1, -(-plaintext_size // CHUNK_BYTES))
    return header_size + PAYLOAD_NONCE_BYTES + plaintext_size + chunks * TAG_BYTES


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes `start` to `end` (exclusive) of the file."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Span:
    """Parts of the file that a range of the plaintext needs."""

    chunks: ByteRange
    """The chunks that hold the range; of size 0 when the range is empty."""
    final: ByteRange | None
    """The file's last chunk if it must be fetched and checked before `chunks` may be used, else
    None."""
    first_index: int
    """Number of the first chunk in `chunks`."""
    final_index: int
    """Number of the file's last chunk."""
    skip: int
    """Bytes of the first chunk that come before the range."""
    length: int
    """Bytes of the range."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The chunks of one file, which begin at `payload_start`, after header and nonce."""

    payload_start: int
    sealed_size: int

    def __post_init__(self) -> None:
        """Raise `TruncatedPayload` or `BadPayload` for sizes that no age file has."""
        if self._final_size < TAG_BYTES:
            raise TruncatedPayload("The file ends before its last chunk does.")
        if self._final_size == TAG_BYTES and self.chunk_count > 1:
            raise BadPayload("The last chunk is empty.")

    @property
    def chunk_count(self) -> int:
        """Number of chunks; at least 1."""
        return max(1, -(-(self.sealed_size - self.payload_start) // SEALED_CHUNK_BYTES))

    @property
    def plaintext_size(self) -> int:
        """Bytes of the plaintext, as far as the file's size can be trusted."""
        return self.sealed_size - self.payload_start - self.chunk_count * TAG_BYTES

    def span(self, offset: int, length: int, *, from_end: bool = True) -> Span:
        """Return the parts to fetch for `length` bytes of the plaintext at `offset`, which lie
        within it.

        `from_end` means that the offset was computed from the plaintext's end, or that the size is
        revealed, while the size is only known from this file's. The specification demands that the
        last chunk is then checked before anything else, so `Span.final` is set unless the range
        begins in that chunk. A range that reaches the end includes the last chunk in any case.
        """
        if not 0 <= offset <= offset + length <= self.plaintext_size:
            raise ValueError("the range is outside the plaintext")
        last = self.chunk_count - 1
        if offset + length == self.plaintext_size:
            first, stop = min(offset // CHUNK_BYTES, last), last + 1
        else:
            first = offset // CHUNK_BYTES
            stop = -(-(offset + length) // CHUNK_BYTES) if length else first
        return Span(
            chunks=ByteRange(self._start(first), self._start(stop)),
            final=ByteRange(self._start(last), self.sealed_size)
            if from_end and first != last
            else None,
            first_index=first,
            final_index=last,
            skip=offset - first * CHUNK_BYTES,
            length=length,
        )

    @property
    def _final_size(self) -> int:
        return self.sealed_size - self._start(self.chunk_count - 1)

    def _start(self, index: int) -> int:
        return min(self.payload_start + index * SEALED_CHUNK_BYTES, self.sealed_size)
