"""Passwords at rest: scrypt hashes, each stored with its cost.

A stored hash reads `$scrypt$ln=15,r=8,p=1$<salt>$<hash>` (base64 without padding), as the PHC
string format writes it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
from dataclasses import dataclass

from on_api.core.crypto.kdf import BLOCK_SIZE, KEY_BYTES, PARALLELISM, Scrypt, memory_needed

SALT_BYTES = 16
MAX_LOG_N = 18
"""Highest log2 of the cost that is accepted on reading: 2^18 is 256 MiB and about a second."""

_STORED = re.compile(
    r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d)\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class PasswordCheck:
    """Result of a check: whether the password was correct, and whether its hash should be made anew
    at today's cost."""

    correct: bool
    outdated: bool = False


class PasswordHasher:
    """Hashes and checks passwords. Thread-safe.

    `log_n` is log2 of scrypt's cost for new hashes, which must fit into `scrypt`'s memory. Calls
    raise `ServiceUnavailable` while that memory is used up.
    """

    def __init__(self, scrypt: Scrypt, *, log_n: int) -> None:
        self._scrypt = scrypt
        self._log_n = log_n
        self.memory = memory_needed(log_n)
        """Bytes that a hash of today's cost takes."""
        self._nobody = self._encode(bytes(SALT_BYTES), bytes(KEY_BYTES))

    def hash(self, password: str) -> str:
        """Return the string to store for a new password."""
        salt = secrets.token_bytes(SALT_BYTES)
        return self._encode(
            salt, self._derive(password, salt, self._log_n, BLOCK_SIZE, PARALLELISM)
        )

    def verify(self, password: str, stored: str | None) -> PasswordCheck:
        """Check a password in constant time. `stored=None` (no such user) takes as long and is
        never correct."""
        match = _STORED.fullmatch(self._nobody if stored is None else stored)
        if match is None:
            return PasswordCheck(correct=False)
        log_n, block_size, parallelism = (int(match[index]) for index in (1, 2, 3))
        if log_n > MAX_LOG_N or not self._scrypt.fits(log_n, block_size) or parallelism > 4:
            return PasswordCheck(correct=False)
        try:
            salt, expected = _decode(match[4]), _decode(match[5])
        except binascii.Error:
            return PasswordCheck(correct=False)
        actual = self._derive(password, salt, log_n, block_size, parallelism)
        correct = hmac.compare_digest(actual, expected) and stored is not None
        return PasswordCheck(correct=correct, outdated=correct and log_n < self._log_n)

    def _derive(
        self, password: str, salt: bytes, log_n: int, block_size: int, parallelism: int
    ) -> bytes:
        return self._scrypt.derive(
            password.encode("utf-8"),
            salt,
            log_n=log_n,
            block_size=block_size,
            parallelism=parallelism,
        )

    def _encode(self, salt: bytes, derived: bytes) -> str:
        cost = f"ln={self._log_n},r={BLOCK_SIZE},p={PARALLELISM}"
        parts = (base64.b64encode(part).decode().rstrip("=") for part in (salt, derived))
        return "$".join(["", "scrypt", cost, *parts])


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
