"""The payload: chunks of 64 KiB, each sealed under its number and a flag for the last one (STREAM).

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
    """Return the payload's key of 32 bytes; `nonce` is the 16 bytes between header and chunks."""
    return hkdf(file_key, salt=nonce, info=b"payload")


class ChunkSealer:
    """Takes the plaintext in pieces of any size and returns chunks. Holds one chunk at most, since
    it is the last one if no more data follow.

    One call may take many MiB; each chunk is written directly to its place in the result.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._held = bytearray()
        self._index = 0
        self._finished = False

    def update(self, data: Bytes) -> bytearray:
        """Return the chunks that are complete by now. Keeps no reference to `data`."""
        if self._finished:
            raise ValueError("the file is finished")
        plaintext = memoryview(data)
        count = (len(self._held) + len(plaintext) - 1) // CHUNK_BYTES if len(plaintext) else 0
        chunks: list[Bytes] = []
        if count and self._held:
            missing = CHUNK_BYTES - len(self._held)
            chunks.append(self._held + plaintext[:missing])
            self._held.clear()
            plaintext = plaintext[missing:]
        whole = (count - len(chunks)) * CHUNK_BYTES
        chunks += [plaintext[at : at + CHUNK_BYTES] for at in range(0, whole, CHUNK_BYTES)]
        self._held += plaintext[whole:]
        first, self._index = self._index, self._index + count
        return _sealed(self._key, first, chunks)

    def finish(self) -> bytearray:
        """Return the last chunk."""
        if self._finished:
            raise ValueError("the file is finished")
        self._finished = True
        last, self._held = self._held, bytearray()  # the sealer may be kept for long
        return _sealed(self._key, self._index, [last], final=True)


class ChunkOpener:
    """Takes chunks in pieces of any size and returns their plaintext once it is authenticated.
    Holds less than one chunk.

    An error in a chunk is raised after the chunks before it were returned: by the same call if
    there are none, else by the next. So the plaintext is complete only if `finish` did not raise.
    """

    def __init__(
        self, key: bytes, *, first: int = 0, stop: int | None = None, final: int | None = None
    ) -> None:
        """Expect chunks `first` to `stop` (exclusive; None: to the end). `final` is the number of
        the file's last chunk, if it is known."""
        self._cipher = aead.chosen()(key)
        self._held = bytearray()
        self._index = first
        self._stop = stop
        self._final = final
        self._ended = False
        self._failure: AgeError | None = None

    def update(self, data: Bytes) -> bytearray:
        """Return the plaintext of the chunks that are complete by now. Raises `BadPayload`."""
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
                raise TrailingData("There is data after the last chunk.")
        except BadPayload as error:
            # Without the traceback, which references the buffer of unauthenticated bytes.
            self._failure = error.with_traceback(None)
            if len(target) == len(out):
                raise
            return out[: len(out) - len(target)]
        self._held += sealed
        return out

    def finish(self) -> bytearray:
        """Return the plaintext of the last chunk. Raises `BadPayload` (`TruncatedPayload` if the
        end is missing; a file that was cut inside a chunk can't be distinguished from one whose
        last chunk was altered)."""
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
        """Decrypt a chunk. A full one may be the last or not: if that isn't known, both are
        tried."""
        if self._ended:
            raise TrailingData("There is data after the last chunk.")
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
        raise BadPayload(
            f"The authentication tag of chunk {self._index} does not match: the file is damaged or"
            " was modified."
        )

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _sealed(key: bytes, first: int, chunks: Sequence[Bytes], *, final: bool = False) -> bytearray:
    """Return sealed chunks from number `first` on; all are full, or it is the last one alone."""
    cipher = aead.chosen()(key)
    out = bytearray(sum(map(len, chunks)) + len(chunks) * TAG_BYTES)
    target = memoryview(out)
    for index, plaintext in enumerate(chunks, first):
        size = len(plaintext) + TAG_BYTES
        cipher.seal(_nonce(index, final), plaintext, target[:size])
        target = target[size:]
    return out


def _nonce(index: int, final: bool) -> bytes:
    return index.to_bytes(aead.NONCE_BYTES - 1, "big") + (b"\x01" if final else b"\x00")
