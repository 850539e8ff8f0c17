"""Key derivation: HKDF makes keys of secrets that are random already, scrypt of passwords.

scrypt is slow and takes much memory on purpose, and any client can cause it. So `Scrypt` bounds the
memory of all its calls together. Nothing here knows what the keys are for.
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
"""Bytes of every key that is derived here."""
BLOCK_SIZE = 8
"""scrypt's parameter r in every hash that on-api makes, and in every age file. A stored hash
names its own, which may be another one."""
PARALLELISM = 1
"""scrypt's parameter p, likewise."""


def hkdf(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    """Derive a key of `KEY_BYTES` by HKDF-SHA256 (RFC 5869). `info` names its purpose: each purpose
    has another key. An empty `salt` means the RFC's default, zeros."""
    return HKDF(secret, KEY_BYTES, salt, SHA256, context=info)


class Scrypt:
    """scrypt (RFC 7914) whose calls together never use more than `memory` bytes at once.

    A call that doesn't fit beside the others waits up to `patience` seconds. Thread-safe. A process
    must have one instance only: each bounds its own calls.
    """

    def __init__(self, *, memory: int, patience: float = 10) -> None:
        self.memory = memory
        self._patience = patience
        self._free_bytes = memory
        self._freed = threading.Condition()
        """Notified when a call has given its bytes back."""

    @classmethod
    def load(cls, settings: Settings) -> Scrypt:
        """Create an instance with the memory that the settings allow. If that is too little for one
        call at the highest cost that they configure, it gets as much as that call takes."""
        auth = settings.auth
        log_n = max(auth.scrypt_log_n, auth.passphrase_log_n)
        return cls(memory=max(auth.scrypt_memory, memory_needed(log_n)))

    def fits(self, log_n: int, block_size: int = BLOCK_SIZE) -> bool:
        """Return whether one call of this cost fits into `memory`, when nothing else runs."""
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
        """Derive a key of `KEY_BYTES` from a password. `log_n`, `block_size` and `parallelism` are
        scrypt's log2(N), r and p.

        Raises `ServiceUnavailable` when not enough memory becomes free in time, and `ValueError`
        for a cost that never fits (see `fits`).
        """
        if not self.fits(log_n, block_size):
            raise ValueError("this cost requires more memory than scrypt may use")
        with self._reserved(memory_needed(log_n, block_size)):
            return scrypt(password, salt, KEY_BYTES, N=1 << log_n, r=block_size, p=parallelism)

    @contextmanager
    def _reserved(self, size: int) -> Iterator[None]:
        """Keep `size` bytes of the memory while the block runs; wait for them before."""
        with self._freed:
            if not self._freed.wait_for(lambda: self._free_bytes >= size, timeout=self._patience):
                raise ServiceUnavailable(
                    "Too many passwords are being checked at the moment; try again in a few"
                    " seconds.",
                    retry_after=2,
                )
            self._free_bytes -= size
        try:
            yield
        finally:
            with self._freed:
                self._free_bytes += size
                self._freed.notify_all()


def memory_needed(log_n: int, block_size: int = BLOCK_SIZE) -> int:
    """Return the bytes of memory that one scrypt call uses: 128 · r · N (RFC 7914, section 2)."""
    return 128 * block_size * (1 << log_n)
