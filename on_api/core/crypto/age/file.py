"""Whole age files: written and read as streams, and read in ranges.

Everything here is synchronous and incremental: call it in a thread, with pieces of a MiB or more.
Memory is bounded by the pieces, one chunk, and scrypt's for a passphrase.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from on_api.core.crypto.age import header as headers
from on_api.core.crypto.age import layout
from on_api.core.crypto.age.armor import ArmorReader
from on_api.core.crypto.age.errors import (
    BadRecipients,
    TrailingData,
    TruncatedHeader,
    TruncatedPayload,
)
from on_api.core.crypto.age.header import Header
from on_api.core.crypto.age.keys import FILE_KEY_BYTES, Identity, Passphrase, Recipient
from on_api.core.crypto.age.layout import PAYLOAD_NONCE_BYTES, Layout, Span
from on_api.core.crypto.age.stream import ChunkOpener, ChunkSealer, payload_key
from on_api.core.streams.blocks import Bytes

MAX_START_BYTES = headers.MAX_BYTES + PAYLOAD_NONCE_BYTES
"""Bytes at the start of a file that are always enough for `unlock`."""


class Encryptor:
    """Writes one file. What `update` and `finish` return, in order, is the file."""

    def __init__(self, recipients: Sequence[Recipient]) -> None:
        """Wrap the file key for each recipient; takes as long as their `wrap`, whose errors it
        raises.

        Raises `BadRecipients` for none, or a passphrase that is not alone, and `BadHeader` for so
        many that readers would refuse the file.
        """
        if not recipients:
            raise BadRecipients("At least one recipient is required.")
        if len(recipients) > 1 and any(isinstance(each, Passphrase) for each in recipients):
            raise BadRecipients("A passphrase can't be combined with other recipients.")
        file_key = secrets.token_bytes(FILE_KEY_BYTES)
        nonce = secrets.token_bytes(PAYLOAD_NONCE_BYTES)
        header = Header.seal([each.wrap(file_key) for each in recipients], file_key)
        self.start = header.encoded + nonce
        """Header and nonce: the bytes before the chunks, and all that `unlock` needs."""
        self._unsent = self.start
        self._sealer = ChunkSealer(payload_key(file_key, nonce))

    def sealed_size(self, plaintext_size: int) -> int:
        """Return the bytes that the file will have."""
        return layout.sealed_size(plaintext_size, len(self.start) - PAYLOAD_NONCE_BYTES)

    def update(self, data: Bytes) -> bytearray:
        """Return the next part of the file, for the next part of the plaintext."""
        return self._behind_start(self._sealer.update(data))

    def finish(self) -> bytearray:
        """Return the rest of the file, without which it can't be read."""
        return self._behind_start(self._sealer.finish())

    def _behind_start(self, chunks: bytearray) -> bytearray:
        chunks[:0] = self._unsent
        self._unsent = b""
        return chunks


@dataclass(frozen=True, slots=True)
class Unlocked:
    """A file whose header was opened: enough to read any part of it."""

    start_size: int
    """Bytes of header and nonce, before the chunks."""
    key: bytes = field(repr=False)

    def layout(self, sealed_size: int) -> Layout:
        """Return the positions of the chunks in a file of `sealed_size` bytes. Raises `BadPayload`
        for an impossible size."""
        return Layout(self.start_size, sealed_size)


def start_size(start: bytes | bytearray) -> int:
    """Return the bytes of header and nonce of the file that begins with `start`. Raises
    `TruncatedHeader` when it doesn't hold them, and the errors of `header.find_end`."""
    end = headers.find_end(start)
    if end is None or len(start) < end + PAYLOAD_NONCE_BYTES:
        raise TruncatedHeader("The file ends before its payload begins.")
    return end + PAYLOAD_NONCE_BYTES


def unlock(start: bytes | bytearray, identities: Sequence[Identity]) -> Unlocked:
    """Open the header at the start of a file. `start` may hold more of the file.

    Raises `TruncatedHeader` when it doesn't hold enough (`MAX_START_BYTES` is always enough), and
    the errors of `Header.parse` and `Header.open`.
    """
    size = start_size(start)
    end = size - PAYLOAD_NONCE_BYTES
    file_key = Header.parse(bytes(start[:end])).open(identities)
    return Unlocked(size, payload_key(file_key, bytes(start[end:size])))


class Decryptor:
    """Reads one file from its beginning to its end.

    An error in a chunk is raised after the chunks before it were returned: the plaintext is
    complete only if `finish` did not raise.
    """

    def __init__(self, identities: Sequence[Identity], *, armored: bool = False) -> None:
        self._identities = identities
        self._armor = ArmorReader() if armored else None
        self._start = bytearray()
        self._opener: ChunkOpener | None = None

    def update(self, data: Bytes) -> bytearray:
        """Return the next part of the plaintext, for the next part of the file. Raises `AgeError`;
        the call that completes the header takes as long as the identities' `unwrap`."""
        if self._armor is not None:
            data = self._armor.update(data)
        if self._opener is not None:
            return self._opener.update(data)
        self._start += data
        end = headers.find_end(self._start)
        if end is None or len(self._start) < end + PAYLOAD_NONCE_BYTES:
            return bytearray()
        unlocked = unlock(self._start, self._identities)
        self._opener = ChunkOpener(unlocked.key)
        rest, self._start = self._start[unlocked.start_size :], bytearray()
        return self._opener.update(rest)

    def finish(self) -> bytearray:
        """Return the rest of the plaintext. Raises `AgeError` unless the file is complete."""
        if self._armor is not None:
            self._armor.finish()
        if self._opener is None:
            raise TruncatedHeader("The file ends before its payload begins.")
        return self._opener.finish()


class RangeDecryptor:
    """Reads a range of the plaintext from the chunks that its `Span` names.

    If `span.final` is set, that chunk must be given to `check_final` first. As the span knows the
    file's size, this reader detects every cut (`TruncatedPayload`); otherwise see `Decryptor`.
    """

    def __init__(self, unlocked: Unlocked, span: Span) -> None:
        self._key = unlocked.key
        self._span = span
        self._final_due = span.final is not None
        self._due = span.chunks.size
        self._skip = span.skip
        self._left = span.length
        self._opener = ChunkOpener(
            unlocked.key,
            first=span.first_index,
            stop=span.first_index + -(-span.chunks.size // layout.SEALED_CHUNK_BYTES),
            final=span.final_index,
        )

    def check_final(self, sealed: Bytes) -> None:
        """Check that the file ends where its size says. `sealed` is the bytes of `span.final`.

        Raises `BadPayload`.
        """
        if self._span.final is None or len(sealed) != self._span.final.size:
            raise TruncatedPayload("The file ends before its last chunk does.")
        index = self._span.final_index
        opener = ChunkOpener(self._key, first=index, stop=index + 1, final=index)
        opener.update(sealed)
        opener.finish()
        self._final_due = False

    def update(self, data: Bytes) -> bytearray:
        """Return the next part of the range, for the next part of `span.chunks`. Raises
        `BadPayload`."""
        if self._final_due:
            raise ValueError("the last chunk must be checked first")
        self._due -= len(data)
        if self._due < 0:
            raise TrailingData("The source sent more bytes than were requested.")
        return self._trim(self._opener.update(data))

    def finish(self) -> bytearray:
        """Return the rest of the range. Raises `BadPayload` unless all of it was there."""
        if self._final_due:
            raise ValueError("the last chunk must be checked first")
        if self._due:
            raise TruncatedPayload("The file ends before its last chunk does.")
        return self._trim(self._opener.finish())

    def _trim(self, plaintext: bytearray) -> bytearray:
        skipped = min(self._skip, len(plaintext))
        del plaintext[:skipped]
        del plaintext[self._left :]
        self._skip -= skipped
        self._left -= len(plaintext)
        return plaintext
