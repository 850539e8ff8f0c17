"""The payload: chunks of 64 KiB, each sealed under its number and whether it is the last (STREAM).

Source: https://age-encryption.org/v1, "Payload". Knows nothing of headers.
"""

from __future__ import annotations

from collections.abc import Sequence

from on_api.core.crypto import aead
from on_api.core.crypto.aead import TAG_BYTES
from on_api.core.crypto.age.errors import AgeError, BadPayload, TrailingData, TruncatedPayload
from on_api.core.crypto.age.layout import CHUNK_BYTES, SEALED_CHUNK_BYTES
from on_api.core.crypto.kdf import hkdf
from on_api.core.streams.blocks import Bytes


def payload_key(file_key: bytes, nonce: bytes) -> bytes:
    """32 bytes; `nonce` are the 16 bytes between header and chunks."""
    return hkdf(file_key, salt=nonce, info=b"payload")


class ChunkSealer:
    """Takes the plaintext in pieces of any size and gives chunks. Holds one chunk at most: whether
    it is the last is known only when more comes, or nothing.

    One call may take many MiB; each chunk is written straight to its place in what is returned.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._held = bytearray()
        self._index = 0
        self._finished = False

    def update(self, data: Bytes) -> bytearray:
        """The chunks that are complete by now. Nothing of `data` is kept by reference."""
        if self._finished:
            raise ValueError("the file is finished")
        plain = memoryview(data)
        count = (len(self._held) + len(plain) - 1) // CHUNK_BYTES if len(plain) else 0
        chunks: list[Bytes] = []
        if count and self._held:
            missing = CHUNK_BYTES - len(self._held)
            chunks.append(self._held + plain[:missing])
            self._held.clear()
            plain = plain[missing:]
        whole = (count - len(chunks)) * CHUNK_BYTES
        chunks += [plain[at : at + CHUNK_BYTES] for at in range(0, whole, CHUNK_BYTES)]
        self._held += plain[whole:]
        first, self._index = self._index, self._index + count
        return _sealed(self._key, first, chunks)

    def finish(self) -> bytearray:
        """The last chunk."""
        if self._finished:
            raise ValueError("the file is finished")
        self._finished = True
        last, self._held = self._held, bytearray()  # who has sealed a file may be kept for long
        return _sealed(self._key, self._index, [last], final=True)


class ChunkOpener:
    """Takes chunks in pieces of any size and gives their plaintext, once it is authentic. Holds
    less than one chunk.

    What is wrong with a chunk is raised after the chunks before it were given out: by the same
    call when there are none, else by the next. So only what `finish` did not raise on is all.
    """

    def __init__(
        self, key: bytes, *, first: int = 0, stop: int | None = None, final: int | None = None
    ) -> None:
        """Chunks `first` to `stop` (not with it; None: to the end) come. `final` is the number of
        the file's last chunk, where that is known."""
        self._cipher = aead.chosen()(key)
        self._held = bytearray()
        self._index = first
        self._stop = stop
        self._final = final
        self._ended = False
        self._failure: AgeError | None = None

    def update(self, data: Bytes) -> bytearray:
        """The plaintext of the chunks that are complete by now. Raises `BadPayload`."""
        self._raise_failure()
        sealed = memoryview(data)
        count = (len(self._held) + len(sealed)) // SEALED_CHUNK_BYTES
        out = bytearray(count * CHUNK_BYTES)
        target = memoryview(out)
        try:
            if count and self._held:
                missing = SEALED_CHUNK_BYTES - len(self._held)
                self._held += sealed[:missing]
                sealed = sealed[missing:]
                self._open(self._held, target[:CHUNK_BYTES])
                target = target[CHUNK_BYTES:]
                self._held.clear()
            while len(target):
                self._open(sealed[:SEALED_CHUNK_BYTES], target[:CHUNK_BYTES])
                sealed, target = sealed[SEALED_CHUNK_BYTES:], target[CHUNK_BYTES:]
            if self._ended and len(sealed):
                raise TrailingData("Something follows the last chunk.")
        except BadPayload as error:
            # Without the traceback, which holds the buffer of what is not authentic.
            self._failure = error.with_traceback(None)
            if len(target) == len(out):
                raise
            return out[: len(out) - len(target)]
        self._held += sealed
        return out

    def finish(self) -> bytearray:
        """The plaintext of the last chunk. Raises `BadPayload` (`TruncatedPayload` where the end is
        missing; a file that was cut inside a chunk can't be told from one whose last chunk was
        changed)."""
        self._raise_failure()
        if self._ended or (self._index == self._stop and not self._held):
            return bytearray()
        if len(self._held) < TAG_BYTES:
            raise TruncatedPayload("The file ends before its last chunk does.")
        if len(self._held) == TAG_BYTES and self._index:
            raise BadPayload("The last chunk is empty.")
        out = bytearray(len(self._held) - TAG_BYTES)
        self._open(self._held, memoryview(out))
        return out

    def _open(self, sealed: Bytes, out: memoryview) -> None:
        """A chunk that is full may be the last or not: where that isn't known, both are tried."""
        if self._ended:
            raise TrailingData("Something follows the last chunk.")
        if len(sealed) < SEALED_CHUNK_BYTES:
            kinds: tuple[bool, ...] = (True,)
        elif self._final is None:
            kinds = (False, True)
        else:
            kinds = (self._index == self._final,)
        for final in kinds:
            if self._cipher.open(_nonce(self._index, final), sealed, out):
                self._index += 1
                self._ended = final
                return
        raise BadPayload(f"Chunk {self._index} is not authentic.")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _sealed(key: bytes, first: int, chunks: Sequence[Bytes], *, final: bool = False) -> bytearray:
    """The chunks from number `first` on; all are full, or it is the last one alone."""
    cipher = aead.chosen()(key)
    out = bytearray(sum(map(len, chunks)) + len(chunks) * TAG_BYTES)
    target = memoryview(out)
    for index, plain in enumerate(chunks, first):
        size = len(plain) + TAG_BYTES
        cipher.seal(_nonce(index, final), plain, target[:size])
        target = target[size:]
    return out


def _nonce(index: int, final: bool) -> bytes:
    return index.to_bytes(aead.NONCE_BYTES - 1, "big") + (b"\x01" if final else b"\x00")
