"""The file format age (https://age-encryption.org/v1): on-api decrypts what `age` encrypts, and
vice versa. X25519 and scrypt recipients; armor on reading only.

Bytes in, bytes out: knows nothing of on-api's files, database and node. Errors are `AgeError`s.
"""

from on_api.core.crypto.age.errors import (
    AgeError,
    BadArmor,
    BadHeader,
    BadKey,
    BadMac,
    BadPassphrase,
    BadPayload,
    BadRecipients,
    NoMatch,
    TrailingData,
    Truncated,
    TruncatedHeader,
    TruncatedPayload,
    UnsupportedVersion,
    WorkFactorTooHigh,
)
from on_api.core.crypto.age.file import (
    MAX_START_BYTES,
    Decryptor,
    Encryptor,
    RangeDecryptor,
    Unlocked,
    start_size,
    unlock,
)
from on_api.core.crypto.age.keys import (
    DEFAULT_LOG_N,
    Identity,
    Passphrase,
    Recipient,
    X25519Identity,
    X25519Recipient,
)
from on_api.core.crypto.age.layout import (
    CHUNK_BYTES,
    PAYLOAD_NONCE_BYTES,
    ByteRange,
    Layout,
    Span,
    sealed_size,
)

__all__ = [
    "CHUNK_BYTES",
    "DEFAULT_LOG_N",
    "MAX_START_BYTES",
    "PAYLOAD_NONCE_BYTES",
    "AgeError",
    "BadArmor",
    "BadHeader",
    "BadKey",
    "BadMac",
    "BadPassphrase",
    "BadPayload",
    "BadRecipients",
    "ByteRange",
    "Decryptor",
    "Encryptor",
    "Identity",
    "Layout",
    "NoMatch",
    "Passphrase",
    "RangeDecryptor",
    "Recipient",
    "Span",
    "TrailingData",
    "Truncated",
    "TruncatedHeader",
    "TruncatedPayload",
    "Unlocked",
    "UnsupportedVersion",
    "WorkFactorTooHigh",
    "X25519Identity",
    "X25519Recipient",
    "sealed_size",
    "start_size",
    "unlock",
]
