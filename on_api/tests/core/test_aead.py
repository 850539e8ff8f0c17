"""The seam for ChaCha20-Poly1305: whatever does it, the bytes are the same."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from on_api.core.crypto import aead
from on_api.core.crypto.aead import TAG_BYTES, Aead, PycryptodomeAead

FAST = aead.chosen()


def seal(library: type[Aead], key: bytes, nonce: bytes, plain: bytes) -> bytes:
    """Ciphertext and tag."""
    out = bytearray(len(plain) + TAG_BYTES)
    library(key).seal(nonce, plain, memoryview(out))
    return bytes(out)


def open_(library: type[Aead], key: bytes, nonce: bytes, sealed: bytes) -> bytes | None:
    """The plaintext, if it is authentic."""
    out = bytearray(len(sealed) - TAG_BYTES)
    return bytes(out) if library(key).open(nonce, sealed, memoryview(out)) else None


def test_the_example_of_the_rfc() -> None:
    """RFC 8439, appendix A.5's key and nonce, with no associated data: fixed for good."""
    key = bytes.fromhex("1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0")
    nonce = bytes.fromhex("000000000102030405060708")
    plain = b"Internet-Drafts are draft documents valid for a maximum of six months"
    for library in (PycryptodomeAead, FAST):
        sealed = seal(library, key, nonce, plain)
        assert sealed[:16].hex() == "64a0861575861af460f062c79be643bd"
        assert open_(library, key, nonce, sealed) == plain


@given(
    key=st.binary(min_size=32, max_size=32),
    nonce=st.binary(min_size=12, max_size=12),
    plain=st.binary(max_size=300),
    flip=st.integers(0),
)
def test_byte_for_byte_the_same(key: bytes, nonce: bytes, plain: bytes, flip: int) -> None:
    """Each opens what the other sealed, and neither what was changed."""
    sealed = seal(PycryptodomeAead, key, nonce, plain)
    assert seal(FAST, key, nonce, plain) == sealed
    changed = bytearray(sealed)
    changed[flip % len(sealed)] ^= 1 << flip % 8
    for library in (PycryptodomeAead, FAST):
        assert open_(library, key, nonce, sealed) == plain
        assert open_(library, key, nonce, bytes(changed)) is None


def test_a_whole_chunk() -> None:
    """Of the size that files are made of."""
    key, nonce, plain = os.urandom(32), os.urandom(12), os.urandom(65_536)
    assert seal(FAST, key, nonce, plain) == seal(PycryptodomeAead, key, nonce, plain)


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra where it is installed and can do it, else what is always there."""
    assert FAST.library == "cryptography"
    assert aead.describe().startswith("cryptography ")
    module = "cryptography.hazmat.primitives.ciphers.aead"

    class TooOld:
        """Before `encrypt_into`."""

        def __init__(self, key: bytes) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.ChaCha20Poly1305", TooOld)
        assert aead.chosen.__wrapped__() is PycryptodomeAead
    monkeypatch.setitem(sys.modules, module, None)
    assert aead.chosen.__wrapped__() is PycryptodomeAead
