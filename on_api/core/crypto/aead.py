"""ChaCha20-Poly1305 (RFC 8439), the authenticated cipher (AEAD) in which `crypto/age` encrypts
private files and their keys.

Two packages implement it behind one protocol, `Aead`: `cryptography` if it is installed (the extra
`on-api[fast]`), else pycryptodome. Both make the same bytes, so that what one has sealed the other
opens. Only this module imports `cryptography`. It knows nothing of files.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Protocol

from Crypto.Cipher import ChaCha20_Poly1305

from on_api.core.streams.blocks import Bytes

NONCE_BYTES = 12
TAG_BYTES = 16
"""Bytes of the authentication tag, which follows the ciphertext."""


class Aead(Protocol):
    """Protocol of a cipher with one key of 32 bytes. Each thread needs an instance of its own. The
    GIL is released while one works."""

    library: str
    """Name of the package that does the work."""

    def __init__(self, key: bytes) -> None: ...

    def seal(self, nonce: bytes, plaintext: Bytes, out: memoryview) -> None:
        """Encrypt: write ciphertext and tag to `out`, which is `TAG_BYTES` longer than `plaintext`.

        `nonce` is `NONCE_BYTES` long. Never seal twice with one nonce and key: that breaks
        the encryption.
        """

    def open(self, nonce: bytes, sealed: Bytes, out: memoryview) -> bool:
        """Decrypt: write the plaintext to `out`, which is `TAG_BYTES` shorter than `sealed`, the
        ciphertext and its tag.

        Returns False if the tag does not match key, nonce and ciphertext: then the bytes in `out`
        must not be used.
        """


class PycryptodomeAead:
    """Implementation by pycryptodome, which is always installed."""

    library = "pycryptodome"

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, nonce: bytes, plaintext: Bytes, out: memoryview) -> None:
        """See `Aead`."""
        cipher = ChaCha20_Poly1305.new(key=self._key, nonce=nonce)
        cipher.encrypt(plaintext, output=out[:-TAG_BYTES])
        out[-TAG_BYTES:] = cipher.digest()

    def open(self, nonce: bytes, sealed: Bytes, out: memoryview) -> bool:
        """See `Aead`."""
        view = memoryview(sealed)
        cipher = ChaCha20_Poly1305.new(key=self._key, nonce=nonce)
        cipher.decrypt(view[:-TAG_BYTES], output=out)
        try:
            cipher.verify(view[-TAG_BYTES:])
        except ValueError:
            return False
        return True


@cache
def chosen() -> type[Aead]:
    """Return the implementation that this process uses. It is chosen at the first call."""
    return _cryptography() or PycryptodomeAead


def describe() -> str:
    """Return name and version of the package in use, for a person to read."""
    library = chosen().library
    return f"{library} {metadata.version(library)}"


def _cryptography() -> type[Aead] | None:
    """Return the implementation by `cryptography`. None if the package is missing, is too old to
    write into a given buffer, or has an OpenSSL without ChaCha20-Poly1305."""
    try:
        from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    except ImportError:
        return None

    class CryptographyAead:
        """Implementation by `cryptography`'s OpenSSL, several times as fast as pycryptodome."""

        library = "cryptography"

        def __init__(self, key: bytes) -> None:
            self._cipher = ChaCha20Poly1305(key)

        def seal(self, nonce: bytes, plaintext: Bytes, out: memoryview) -> None:
            """See `Aead`."""
            self._cipher.encrypt_into(nonce, plaintext, None, out)

        def open(self, nonce: bytes, sealed: Bytes, out: memoryview) -> bool:
            """See `Aead`."""
            try:
                self._cipher.decrypt_into(nonce, sealed, None, out)
            except InvalidTag:
                return False
            return True

    # Only a call shows whether this version and its OpenSSL can do it.
    try:
        CryptographyAead(bytes(32)).seal(bytes(NONCE_BYTES), b"", memoryview(bytearray(TAG_BYTES)))
    except (AttributeError, UnsupportedAlgorithm):
        return None
    return CryptographyAead
