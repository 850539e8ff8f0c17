"""Sealing small values at rest: ChaCha20-Poly1305 (RFC 8439) under a subkey, bound to a context."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from Crypto.Cipher import ChaCha20_Poly1305

from on_api.core.crypto.secrets import Keyring, Purpose

NONCE_BYTES = 12
TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed value as stored in a row: nonce, tag and ciphertext, and the version of the master
    secret that opens it."""

    version: int
    data: bytes = field(repr=False)


class Sealer:
    """Seals for one purpose under the master secret in use; opens under any that is loaded. Values
    for rows are sealed through `accounts/master_secret.py`."""

    def __init__(self, keyring: Keyring, purpose: Purpose) -> None:
        self._keyring = keyring
        self._purpose = purpose

    def seal(self, plaintext: bytes, context: bytes, version: int | None = None) -> Sealed:
        """Seal `plaintext`; it opens only with the same `context`. `version` selects another secret
        than the one in use."""
        version = self._keyring.version if version is None else version
        nonce = secrets.token_bytes(NONCE_BYTES)
        cipher = ChaCha20_Poly1305.new(key=self._subkey(version), nonce=nonce)
        cipher.update(context)
        sealed, tag = cipher.encrypt_and_digest(plaintext)
        return Sealed(version, nonce + tag + sealed)

    def open(self, sealed: Sealed, context: bytes) -> bytes:
        """Return the plaintext. Raises `ValueError` for altered data or another context, and
        `UnknownSecretError` when its secret is not loaded."""
        nonce, rest = sealed.data[:NONCE_BYTES], sealed.data[NONCE_BYTES:]
        cipher = ChaCha20_Poly1305.new(key=self._subkey(sealed.version), nonce=nonce)
        cipher.update(context)
        return cipher.decrypt_and_verify(rest[TAG_BYTES:], rest[:TAG_BYTES])

    def _subkey(self, version: int) -> bytes:
        return self._keyring.subkey(self._purpose, version)
