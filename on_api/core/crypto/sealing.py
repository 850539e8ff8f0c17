"""Sealing small things at rest: ChaCha20-Poly1305 (RFC 8439) under a subkey, bound to what they
belong to."""

from __future__ import annotations

import secrets

from Crypto.Cipher import ChaCha20_Poly1305

NONCE_BYTES = 12
TAG_BYTES = 16


class Sealer:
    """Seals and opens under one subkey of 32 bytes."""

    def __init__(self, subkey: bytes) -> None:
        self._subkey = subkey

    def seal(self, plain: bytes, context: bytes) -> bytes:
        """Nonce, tag and ciphertext; opens only with the same `context`."""
        cipher = ChaCha20_Poly1305.new(key=self._subkey, nonce=secrets.token_bytes(NONCE_BYTES))
        cipher.update(context)
        sealed, tag = cipher.encrypt_and_digest(plain)
        return cipher.nonce + tag + sealed

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """What was sealed. Raises `ValueError` for anything changed, or of another context or
        secret."""
        nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        cipher = ChaCha20_Poly1305.new(key=self._subkey, nonce=nonce)
        cipher.update(context)
        return cipher.decrypt_and_verify(rest[TAG_BYTES:], rest[:TAG_BYTES])
