"""Errors of age files and keys, as one tree; services map them to answers.

    AgeError
    ├── BadKey                  text that is no recipient or identity, or a recipient nobody can be
    ├── BadRecipients           none, or a passphrase beside others
    ├── BadArmor                the ASCII armor is not exactly as it must be
    ├── BadHeader               the header breaks the format's rules
    │   ├── UnsupportedVersion  of the format
    │   ├── TruncatedHeader     the file ends in the header or the nonce behind it (a Truncated too)
    │   └── WorkFactorTooHigh   the passphrase would cost more than is allowed
    ├── NoMatch                 none of the identities opens the file
    │   └── BadPassphrase
    ├── BadMac                  the header was changed after it was written
    ├── BadPayload              a chunk is not authentic, or empty where it must not be
    │   ├── TruncatedPayload    the file ends before its last chunk does (a Truncated too)
    │   └── TrailingData        there is more behind the last chunk
    └── Truncated

Messages hold nothing secret.
"""

from __future__ import annotations


class AgeError(Exception):
    """Base of the errors that the format's readers and writers raise for bad input."""


class BadKey(AgeError):
    """Not a usable recipient, identity or passphrase."""


class BadRecipients(AgeError):
    """No recipient, or a passphrase together with others."""


class BadArmor(AgeError):
    """The armor is not as strict as the format demands."""


class Truncated(AgeError):
    """The file ends too early."""


class BadHeader(AgeError):
    """The header breaks the format's rules."""


class UnsupportedVersion(BadHeader):
    """An age file of another version than v1."""


class TruncatedHeader(BadHeader, Truncated):
    """The file ends before its payload begins."""


class WorkFactorTooHigh(BadHeader):
    """scrypt would cost more than the reader allows."""


class NoMatch(AgeError):
    """None of the identities opens the file."""


class BadPassphrase(NoMatch):
    """The file is for a passphrase, but not for this one."""


class BadMac(AgeError):
    """The header is not the one that was written."""


class BadPayload(AgeError):
    """A chunk is not the one that was written there."""


class TruncatedPayload(BadPayload, Truncated):
    """The file ends before its last chunk does."""


class TrailingData(BadPayload):
    """Something follows the last chunk."""
