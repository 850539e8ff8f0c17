"""API keys and tokens: `onapi_` + 43 random base62 characters + a checksum of 6, stored as an HMAC.

The checksum (CRC-32 of everything before it, as in GitHub's tokens) lets a mistyped key be refused
without the database. The token of a share is 43 random base62 characters, stored as a hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import zlib

PREFIX = "onapi_"
RANDOM_LENGTH = 43
"""Random characters of a key: log2(62^43) = 256 bits."""
CHECKSUM_LENGTH = 6
SHOWN_LENGTH = len(PREFIX) + 6
"""Characters of a key that may be shown, so that its owner recognises it."""

_ALPHABET = string.digits + string.ascii_letters
_SHARE = re.compile(rf"[0-9A-Za-z]{{{RANDOM_LENGTH}}}", re.ASCII)
_KEY = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{RANDOM_LENGTH + CHECKSUM_LENGTH}}}", re.ASCII)


def new_key() -> str:
    """Return a new secret key."""
    body = PREFIX + _random()
    return body + _checksum(body)


def is_well_formed(key: str) -> bool:
    """Return whether `key` has the form and the checksum of a key of ours. It need not be valid."""
    if _KEY.fullmatch(key) is None:
        return False
    return hmac.compare_digest(key[-CHECKSUM_LENGTH:], _checksum(key[:-CHECKSUM_LENGTH]))


def digest(key: str, subkey: bytes) -> bytes:
    """Return the HMAC-SHA256 (32 bytes) of a key under a subkey of the master secret, as it is
    stored."""
    return hmac.digest(subkey, key.encode(), "sha256")


def new_share_token() -> str:
    """Return a new secret for a share's link."""
    return _random()


def share_digest(token: str) -> bytes | None:
    """Return the SHA-256 (32 bytes) of a share's token, as it is stored; None if it can't be a
    token. The token is as random as the hash is long: no secret of ours is needed besides."""
    if _SHARE.fullmatch(token) is None:
        return None
    return hashlib.sha256(token.encode()).digest()


def _random() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(RANDOM_LENGTH))


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    digits = []
    for _ in range(CHECKSUM_LENGTH):
        number, index = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[index])
    return "".join(reversed(digits))
