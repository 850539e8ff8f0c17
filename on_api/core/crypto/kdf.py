"""Key derivation: HKDF for strong secrets, scrypt with bounded memory for passwords.

Knows nothing of what the keys are for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF, scrypt

from on_api.core.errors import ServiceUnavailable
from on_api.core.settings import Settings

KEY_BYTES = 32
"""Bytes of every key derived here."""
BLOCK_SIZE = 8
PARALLELISM = 1
"""Parameters r and p of scrypt, wherever we choose them, and in every age file."""


def hkdf(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    """Derive 32 bytes by HKDF-SHA256 (RFC 5869). An empty `salt` is the RFC's default."""
    return HKDF(secret, KEY_BYTES, salt, SHA256, context=info)


class Scrypt:
    """An scrypt (RFC 7914) that never uses more than `memory` bytes at once, over all its callers.

    Thread-safe. A call waits up to `patience` seconds for memory. There must be one per process, or
    the bound does not hold.
    """

    def __init__(self, *, memory: int, patience: float = 10) -> None:
        self.memory = memory
        self._patience = patience
        self._free = memory
        self._change = threading.Condition()

    @classmethod
    def load(cls, settings: Settings) -> Scrypt:
        """Create it with the memory that the settings allow, but at least what one call of their
        costs takes."""
        auth = settings.auth
        log_n = max(auth.scrypt_log_n, auth.passphrase_log_n)
        return cls(memory=max(auth.scrypt_memory, memory_needed(log_n)))

    def fits(self, log_n: int, block_size: int = BLOCK_SIZE) -> bool:
        """Return whether a call of this cost may be made at all."""
        return memory_needed(log_n, block_size) <= self.memory

    def derive(
        self,
        password: bytes,
        salt: bytes,
        *,
        log_n: int,
        block_size: int = BLOCK_SIZE,
        parallelism: int = PARALLELISM,
    ) -> bytes:
        """Derive 32 bytes at the cost 2^`log_n`. Raises `ServiceUnavailable` when memory doesn't
        become free in time, and `ValueError` for a cost that does not fit."""
        if not self.fits(log_n, block_size):
            raise ValueError("this cost requires more memory than scrypt may use")
        with self._reserved(memory_needed(log_n, block_size)):
            return scrypt(password, salt, KEY_BYTES, N=1 << log_n, r=block_size, p=parallelism)

    @contextmanager
    def _reserved(self, size: int) -> Iterator[None]:
        with self._change:
            if not self._change.wait_for(lambda: self._free >= size, timeout=self._patience):
                raise ServiceUnavailable(
                    "Too many passwords are being checked at the moment; try again in a few"
                    " seconds.",
                    retry_after=2,
                )
            self._free -= size
        try:
            yield
        finally:
            with self._change:
                self._free += size
                self._change.notify_all()


def memory_needed(log_n: int, block_size: int = BLOCK_SIZE) -> int:
    """Return the bytes of memory that one scrypt call uses (RFC 7914, section 2)."""
    return 128 * block_size * (1 << log_n)
