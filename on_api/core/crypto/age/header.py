"""The textual header of an age file: read strictly, written, and authenticated by its MAC.

Source: https://age-encryption.org/v1, "Header".
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from on_api.core.crypto.age.errors import (
    BadHeader,
    BadMac,
    BadPassphrase,
    NoMatch,
    UnsupportedVersion,
)
from on_api.core.crypto.age.keys import Identity, stands_alone
from on_api.core.crypto.age.stanza import COLUMNS, Stanza, decode_base64, encode_base64
from on_api.core.crypto.kdf import hkdf

MAX_BYTES = 64 * 1024
"""Bytes of a header at most: some 650 recipients. A longer one is refused, so that reading it costs
little."""
VERSION_LINE = b"age-encryption.org/v1\n"

_INTRODUCTION = b"age-encryption.org/"
_END = b"\n---"
_MAC_LINE = re.compile(rb"--- ([A-Za-z0-9+/]{43})")
_ARGUMENT_LINE = re.compile(rb"->((?: [!-~]+)+)")


@dataclass(frozen=True, slots=True)
class Header:
    """A header as it was read or written. Not authenticated before `open` has returned."""

    stanzas: tuple[Stanza, ...]
    encoded: bytes
    """The whole header, to the end of the MAC's line."""

    @classmethod
    def seal(cls, stanzas: Sequence[Stanza], file_key: bytes) -> Header:
        """Write a header. Raises `BadHeader` when it would be longer than readers accept."""
        body = VERSION_LINE + b"".join(stanza.encode() for stanza in stanzas) + b"---"
        encoded = body + f" {encode_base64(_mac(file_key, body))}\n".encode()
        if len(encoded) > MAX_BYTES:
            raise BadHeader(
                f"The header would exceed {MAX_BYTES} bytes: there are too many recipients."
            )
        return cls(tuple(stanzas), encoded)

    @classmethod
    def parse(cls, encoded: bytes) -> Header:
        """Parse a header, which must be all of `encoded`. Raises `BadHeader`."""
        if not encoded.startswith(VERSION_LINE):
            _check_start(encoded)
            raise BadHeader("The header's first line is malformed.")
        lines = iter(encoded.removeprefix(VERSION_LINE).split(b"\n"))
        stanzas: list[Stanza] = []
        for line in lines:
            if not line.startswith(b"->"):
                break
            stanzas.append(_read_stanza(line, lines))
        if _MAC_LINE.fullmatch(line) is None or [*lines] != [b""]:
            raise BadHeader("The header's last line is malformed.")
        decode_base64(line.removeprefix(b"--- "))
        if not stanzas:
            raise BadHeader("The header contains no recipient stanza.")
        if len(stanzas) > 1 and any(stands_alone(stanza) for stanza in stanzas):
            raise BadHeader("A stanza that must be the only one is combined with others.")
        return cls(tuple(stanzas), encoded)

    def open(self, identities: Sequence[Identity]) -> bytes:
        """Return the file key, by the first identity that has it.

        Raises `NoMatch` (`BadPassphrase` if a passphrase was given for a file that has another
        one), `BadHeader` for a stanza that breaks the rules of its type, and `BadMac`.
        """
        why = NoMatch("The file is not encrypted to any of these keys.")
        for identity in identities:
            try:
                file_key = identity.unwrap(self.stanzas)
            except BadPassphrase as error:
                why = error
                continue
            if file_key is not None:
                self._check_mac(file_key)
                return file_key
        raise why

    def _check_mac(self, file_key: bytes) -> None:
        body, _, mac = self.encoded.rpartition(b" ")
        if not hmac.compare_digest(_mac(file_key, body), decode_base64(mac.removesuffix(b"\n"))):
            raise BadMac(
                "The header's MAC does not match: the header was modified after it was written."
            )


def find_end(data: bytes | bytearray) -> int | None:
    """Return the position after the header at the start of `data`; None if it is not complete.

    Raises `BadHeader` if it is not the header of an age file, or too long.
    """
    _check_start(data)
    mark = data.find(_END)
    end = data.find(b"\n", mark + 1) + 1 if mark >= 0 else 0
    if (end or len(data)) > MAX_BYTES:
        raise BadHeader(f"The header exceeds {MAX_BYTES} bytes.")
    return end or None


def _check_start(data: bytes | bytearray) -> None:
    start = bytes(data[: len(VERSION_LINE)])
    if VERSION_LINE.startswith(start):
        return
    if start.startswith(_INTRODUCTION):
        raise UnsupportedVersion("Only version 1 of the age format is supported.")
    raise BadHeader("This is not an age file.")


def _read_stanza(line: bytes, lines: Iterator[bytes]) -> Stanza:
    match = _ARGUMENT_LINE.fullmatch(line)
    if match is None:
        raise BadHeader("A stanza's first line is malformed.")
    body = bytearray()
    for part in lines:
        body += part
        if len(part) > COLUMNS:
            break
        if len(part) < COLUMNS:
            return Stanza(tuple(match[1].decode().split()), decode_base64(bytes(body)))
    raise BadHeader("A stanza's body is malformed.")


def _mac(file_key: bytes, body: bytes) -> bytes:
    return hmac.digest(hkdf(file_key, salt=b"", info=b"header"), body, "sha256")
