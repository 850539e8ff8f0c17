"""Passwords at rest: scrypt, its cost kept with each hash, its memory bounded.

A stored hash reads `$scrypt$ln=15,r=8,p=1$<salt>$<hash>` (base64 without padding), as the PHC
string format writes it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from Crypto.Protocol.KDF import scrypt

from on_api.core.errors import ServiceUnavailable

BLOCK_SIZE = 8
PARALLELISM = 1
HASH_BYTES = 32
SALT_BYTES = 16
MAX_LOG_N = 18
"""Costs above this are refused on reading: 2^18 is 256 MiB and about a second."""

_STORED = re.compile(
    r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d)\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the password was right, and whether its hash should be made anew at today's cost."""

    correct: bool
    outdated: bool = False


class PasswordHasher:
    """Hashes and checks passwords. Thread-safe; never uses more than `memory` bytes at once.

    `log_n` is log2 of scrypt's cost for new hashes. Calls wait up to `patience` seconds for memory
    and then raise `ServiceUnavailable`.
    """

    def __init__(self, *, log_n: int, memory: int, patience: float = 10) -> None:
        self._log_n = log_n
        self._memory = max(memory, _memory_needed(log_n, BLOCK_SIZE))
        self._patience = patience
        self._free = self._memory
        self._change = threading.Condition()
        self._nobody = self._encode(bytes(SALT_BYTES), bytes(HASH_BYTES))

    def hash(self, password: str) -> str:
        """The string to store for a new password."""
        salt = secrets.token_bytes(SALT_BYTES)
        return self._encode(
            salt, self._derive(password, salt, self._log_n, BLOCK_SIZE, PARALLELISM)
        )

    def verify(self, password: str, stored: str | None) -> Verdict:
        """Compare in constant time. `stored=None` (no such user) takes as long and is never
        correct."""
        match = _STORED.fullmatch(self._nobody if stored is None else stored)
        if match is None:
            return Verdict(correct=False)
        log_n, block_size, parallelism = (int(match[index]) for index in (1, 2, 3))
        if log_n > MAX_LOG_N or _memory_needed(log_n, block_size) > self._memory or parallelism > 4:
            return Verdict(correct=False)
        try:
            salt, expected = _decode(match[4]), _decode(match[5])
        except binascii.Error:
            return Verdict(correct=False)
        actual = self._derive(password, salt, log_n, block_size, parallelism)
        correct = hmac.compare_digest(actual, expected) and stored is not None
        return Verdict(correct=correct, outdated=correct and log_n < self._log_n)

    def _derive(
        self, password: str, salt: bytes, log_n: int, block_size: int, parallelism: int
    ) -> bytes:
        with self._reserved(_memory_needed(log_n, block_size)):
            derived = scrypt(
                password.encode("utf-8"),
                salt,
                HASH_BYTES,
                N=1 << log_n,
                r=block_size,
                p=parallelism,
            )
        if not isinstance(derived, bytes):  # a tuple when several keys are asked for
            raise TypeError("scrypt returned several keys")
        return derived

    @contextmanager
    def _reserved(self, size: int) -> Iterator[None]:
        with self._change:
            if not self._change.wait_for(lambda: self._free >= size, timeout=self._patience):
                raise ServiceUnavailable("Too many logins at once; try again soon.", retry_after=2)
            self._free -= size
        try:
            yield
        finally:
            with self._change:
                self._free += size
                self._change.notify_all()

    def _encode(self, salt: bytes, derived: bytes) -> str:
        cost = f"ln={self._log_n},r={BLOCK_SIZE},p={PARALLELISM}"
        parts = (base64.b64encode(part).decode().rstrip("=") for part in (salt, derived))
        return "$".join(["", "scrypt", cost, *parts])


def _memory_needed(log_n: int, block_size: int) -> int:
    """Bytes that one scrypt call uses (RFC 7914, section 2)."""
    return 128 * block_size * (1 << log_n)


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
