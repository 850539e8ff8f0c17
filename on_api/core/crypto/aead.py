"""ChaCha20-Poly1305 (RFC 8439) for large data: by the `cryptography` package if it is installed
(the extra `on-api[fast]`), else by pycryptodome. The bytes are the same.

The only importer of `cryptography`. Knows nothing of files.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Protocol

from Crypto.Cipher import ChaCha20_Poly1305

from on_api.core.streams.blocks import Bytes

NONCE_BYTES = 12
TAG_BYTES = 16


class Aead(Protocol):
    """A cipher with one key of 32 bytes. Releases the GIL while it works; not to be shared by
    threads."""

    library: str

    def __init__(self, key: bytes) -> None: ...

    def seal(self, nonce: bytes, plaintext: Bytes, out: memoryview) -> None:
        """Write ciphertext and tag to `out`, which is `TAG_BYTES` longer than `plaintext`."""

    def open(self, nonce: bytes, sealed: Bytes, out: memoryview) -> bool:
        """Write the plaintext to `out`, `TAG_BYTES` shorter than `sealed`. Returns False when it is
        not authentic: then the content of `out` must not be used."""


class PycryptodomeAead:
    """The implementation that is always available."""

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
    """Return the implementation that this process uses, determined once."""
    return _cryptography() or PycryptodomeAead


def describe() -> str:
    """Return the package and version in use, for people."""
    library = chosen().library
    return f"{library} {metadata.version(library)}"


def _cryptography() -> type[Aead] | None:
    """Return the implementation by `cryptography`; None if the package is missing, too old to write
    into a buffer, or its OpenSSL has no ChaCha20-Poly1305."""
    try:
        from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    except ImportError:
        return None

    class CryptographyAead:
        """The implementation by OpenSSL, several times as fast."""

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

    try:
        CryptographyAead(bytes(32)).seal(bytes(NONCE_BYTES), b"", memoryview(bytearray(TAG_BYTES)))
    except (AttributeError, UnsupportedAlgorithm):
        return None
    return CryptographyAead
