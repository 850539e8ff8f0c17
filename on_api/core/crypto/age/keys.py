"""Keys that open a file: X25519 identities and their recipients, and passphrases.

Each wraps the file key into a stanza of the header, and finds and unwraps its own. The primitives
and limits are those of the specification's "native recipient types".
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Protocol

from Crypto.Protocol import DH

from on_api.core.crypto import aead
from on_api.core.crypto.age import bech32
from on_api.core.crypto.age.errors import (
    BadHeader,
    BadKey,
    BadPassphrase,
    WorkFactorTooHigh,
)
from on_api.core.crypto.age.stanza import Stanza, decode_base64, encode_base64
from on_api.core.crypto.kdf import Scrypt, hkdf

FILE_KEY_BYTES = 16
SHARE_BYTES = 32
SALT_BYTES = 16
DEFAULT_LOG_N = 18
"""Log2 of scrypt's cost: 256 MiB and about a second. Age writes it, and no more is accepted on
reading."""

_X25519, _SCRYPT = "X25519", "scrypt"
_X25519_INFO = b"age-encryption.org/v1/X25519"
_SCRYPT_LABEL = b"age-encryption.org/v1/scrypt"
_RECIPIENT_PREFIX = "age"
_IDENTITY_PREFIX = "age-secret-key-"
_BODY_BYTES = FILE_KEY_BYTES + aead.TAG_BYTES
_WORK_FACTOR = re.compile(r"[1-9][0-9]*", re.ASCII)


class Recipient(Protocol):
    """A key to encrypt to."""

    def wrap(self, file_key: bytes) -> Stanza:
        """Return the stanza by which only this recipient gets the file key."""


class Identity(Protocol):
    """A key that may be able to decrypt."""

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Return the file key; None when no stanza is for this identity. Raises `BadHeader` for a
        stanza that breaks the rules of this identity's type."""


class X25519Recipient:
    """A public key: `age1…`."""

    def __init__(self, point: bytes) -> None:
        """Create a recipient from `point`: 32 bytes, as RFC 7748 encodes them. Raises `BadKey` for
        a point of low order, for which every shared secret would be the same."""
        self.point = point
        try:
            self._key = DH.import_x25519_public_key(point)
        except ValueError:
            raise BadKey("This recipient is not a usable X25519 public key.") from None

    @classmethod
    def parse(cls, text: str) -> X25519Recipient:
        """Parse `age1…`, lower case as age writes it. Raises `BadKey`."""
        return cls(_decode_key(_RECIPIENT_PREFIX, text))

    def __str__(self) -> str:
        return bech32.encode(_RECIPIENT_PREFIX, self.point)

    def __repr__(self) -> str:
        return f"X25519Recipient({self})"

    def wrap(self, file_key: bytes) -> Stanza:
        """Return a stanza made with a new ephemeral key, so that it doesn't reveal its
        recipient."""
        ephemeral = X25519Identity.generate()
        share = ephemeral.recipient.point
        wrap_key = _wrap_key(ephemeral.agree(self), share, self)
        return Stanza((_X25519, encode_base64(share)), _seal(wrap_key, file_key))


class X25519Identity:
    """A secret key: `AGE-SECRET-KEY-1…`. Never shown by `str()` or `repr()`."""

    def __init__(self, secret: bytes) -> None:
        """Create an identity from 32 random bytes. Raises `BadKey` for another length."""
        if len(secret) != SHARE_BYTES:
            raise BadKey("An X25519 identity must have 32 bytes.")
        self.secret = secret
        self._key = DH.import_x25519_private_key(secret)
        self.recipient = X25519Recipient(self._key.public_key().export_key(format="raw"))

    @classmethod
    def generate(cls) -> X25519Identity:
        """Return a new identity."""
        return cls(secrets.token_bytes(SHARE_BYTES))

    @classmethod
    def parse(cls, text: str) -> X25519Identity:
        """Parse `AGE-SECRET-KEY-1…`, upper case as age writes it. Raises `BadKey`."""
        return cls(_decode_key(_IDENTITY_PREFIX.upper(), text))

    def export(self) -> str:
        """Return `AGE-SECRET-KEY-1…`, for its owner only."""
        return bech32.encode(_IDENTITY_PREFIX, self.secret).upper()

    def __repr__(self) -> str:
        return f"X25519Identity(recipient={self.recipient})"

    def agree(self, other: X25519Recipient) -> bytes:
        """Return the 32 bytes that both share. Never all zero: `other` is not of low order."""
        shared: bytes = DH.key_agreement(static_priv=self._key, static_pub=other._key, kdf=bytes)
        return shared

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """See `Identity`."""
        for stanza in stanzas:
            if stanza.type == _X25519:
                file_key = self._unwrap(stanza)
                if file_key is not None:
                    return file_key
        return None

    def _unwrap(self, stanza: Stanza) -> bytes | None:
        if len(stanza.arguments) != 2:
            raise BadHeader("An X25519 stanza must have exactly one argument.")
        share = _decode_argument(stanza.arguments[1], SHARE_BYTES)
        _check_body(stanza)
        try:
            ephemeral = X25519Recipient(share)
        except BadKey:
            raise BadHeader(
                "The ephemeral share of an X25519 stanza is a point of low order."
            ) from None
        return _open(_wrap_key(self.agree(ephemeral), share, self.recipient), stanza.body)


class Passphrase:
    """A passphrase, which is recipient and identity at once. Never shown by `str()` or `repr()`."""

    def __init__(
        self,
        passphrase: str,
        scrypt: Scrypt,
        *,
        log_n: int = DEFAULT_LOG_N,
        max_log_n: int = DEFAULT_LOG_N,
    ) -> None:
        """Create it. `log_n` is log2 of the cost for writing, `max_log_n` of the highest cost
        accepted on reading.

        Raises `BadKey` for a passphrase that is empty or not encodable as UTF-8.
        """
        try:
            self._passphrase = passphrase.encode()
        except UnicodeEncodeError:
            raise BadKey("The passphrase is not valid text.") from None
        if not self._passphrase:
            raise BadKey("The passphrase is empty.")
        self._scrypt = scrypt
        self._log_n = log_n
        self._max_log_n = max_log_n

    def __repr__(self) -> str:
        return "Passphrase(…)"

    def wrap(self, file_key: bytes) -> Stanza:
        """Return the stanza; takes scrypt's time and memory. Raises `ServiceUnavailable` while no
        memory is free, and `WorkFactorTooHigh` if there is never enough."""
        self._check_memory(self._log_n)
        salt = secrets.token_bytes(SALT_BYTES)
        arguments = (_SCRYPT, encode_base64(salt), str(self._log_n))
        return Stanza(arguments, _seal(self._derive(salt, self._log_n), file_key))

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """See `Identity`; takes scrypt's time and memory when the file is for a passphrase.

        Raises `BadPassphrase` when that is another one, `WorkFactorTooHigh`, and
        `ServiceUnavailable` while there is no memory left.
        """
        for stanza in stanzas:
            if stanza.type == _SCRYPT:
                return self._unwrap(stanza)
        return None

    def _unwrap(self, stanza: Stanza) -> bytes:
        if len(stanza.arguments) != 3:
            raise BadHeader("An scrypt stanza must have exactly two arguments.")
        salt = _decode_argument(stanza.arguments[1], SALT_BYTES)
        if _WORK_FACTOR.fullmatch(stanza.arguments[2]) is None:
            raise BadHeader("The work factor of an scrypt stanza is not a plain decimal number.")
        _check_body(stanza)
        # The digits are counted first: a number of thousands of digits takes long to parse.
        if len(stanza.arguments[2]) > 2 or int(stanza.arguments[2]) > self._max_log_n:
            raise WorkFactorTooHigh(f"The scrypt work factor exceeds 2^{self._max_log_n}.")
        log_n = int(stanza.arguments[2])
        self._check_memory(log_n)
        file_key = _open(self._derive(salt, log_n), stanza.body)
        if file_key is None:
            raise BadPassphrase("The passphrase is wrong.")
        return file_key

    def _check_memory(self, log_n: int) -> None:
        if not self._scrypt.fits(log_n):
            raise WorkFactorTooHigh(
                "The scrypt work factor requires more memory than the server allows."
            )

    def _derive(self, salt: bytes, log_n: int) -> bytes:
        return self._scrypt.derive(self._passphrase, _SCRYPT_LABEL + salt, log_n=log_n)


def stands_alone(stanza: Stanza) -> bool:
    """Return whether the stanza must be the only one: a passphrase promises that only its holders
    can have written the file."""
    return stanza.type == _SCRYPT


def _decode_key(prefix: str, text: str) -> bytes:
    found, data = bech32.decode(text)
    if found != prefix:
        raise BadKey(f"This is not an X25519 key: those begin with {prefix}1.")
    return data


def _decode_argument(argument: str, length: int) -> bytes:
    data = decode_base64(argument.encode())
    if len(data) != length:
        raise BadHeader("An argument of a stanza has the wrong length.")
    return data


def _check_body(stanza: Stanza) -> None:
    # Checked before decrypting: a longer body could be crafted to open under two keys.
    if len(stanza.body) != _BODY_BYTES:
        raise BadHeader("The body of a stanza has the wrong length.")


def _wrap_key(shared: bytes, share: bytes, recipient: X25519Recipient) -> bytes:
    return hkdf(shared, salt=share + recipient.point, info=_X25519_INFO)


def _seal(wrap_key: bytes, file_key: bytes) -> bytes:
    out = bytearray(_BODY_BYTES)
    aead.chosen()(wrap_key).seal(bytes(aead.NONCE_BYTES), file_key, memoryview(out))
    return bytes(out)


def _open(wrap_key: bytes, body: bytes) -> bytes | None:
    out = bytearray(FILE_KEY_BYTES)
    if not aead.chosen()(wrap_key).open(bytes(aead.NONCE_BYTES), body, memoryview(out)):
        return None
    return bytes(out)
