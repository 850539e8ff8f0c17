"""Bech32 (BIP 173), as age spells its keys: without the limit of 90 characters.

Knows nothing of what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Iterable

from on_api.core.crypto.age.errors import BadKey

CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
CHECKSUM_LENGTH = 6
MAX_LENGTH = 1024
"""Characters of a text at most; age's own keys have 62 and 74."""

_VALUES = {character: value for value, character in enumerate(CHARSET)}
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def encode(prefix: str, data: bytes) -> str:
    """Return the Bech32 text in lower case. `prefix` is the human-readable part, in lower case."""
    values = list(_regroup(data, 8, 5))
    rest = -len(data) * 8 % 5
    if rest:
        values.append((data[-1] << rest) & 31)
    check = polymod([*expand(prefix), *values, *([0] * CHECKSUM_LENGTH)]) ^ 1
    values += [(check >> 5 * (CHECKSUM_LENGTH - 1 - i)) & 31 for i in range(CHECKSUM_LENGTH)]
    return prefix + "1" + "".join(CHARSET[value] for value in values)


def decode(text: str) -> tuple[str, bytes]:
    """Return the human-readable part, in the case that it has, and the data.

    Raises `BadKey` for anything that `encode` would not have written, except for a text that is all
    upper case.
    """
    lower = text.lower()
    if not text.isascii() or text not in (lower, text.upper()) or len(text) > MAX_LENGTH:
        raise BadKey(
            "This is not valid Bech32: it must be ASCII, and entirely lower case or entirely upper"
            " case."
        )
    prefix, separator, rest = lower.rpartition("1")
    if not separator or not prefix or len(rest) < CHECKSUM_LENGTH:
        raise BadKey(
            "This is not valid Bech32: the prefix, the separator or the data part is missing."
        )
    if not all(33 <= ord(character) <= 126 for character in prefix):
        raise BadKey("This is not valid Bech32: it contains unprintable characters.")
    try:
        values = [_VALUES[character] for character in rest]
    except KeyError:
        raise BadKey(
            "This is not valid Bech32: it contains characters outside the alphabet."
        ) from None
    if polymod([*expand(prefix), *values]) != 1:
        raise BadKey("The checksum does not match: a character was mistyped or lost.")
    values = values[:-CHECKSUM_LENGTH]
    padding = len(values) * 5 % 8
    if padding > 4 or (padding and values[-1] & ((1 << padding) - 1)):
        raise BadKey("This is not valid Bech32: its padding bits are not zero.")
    return text[: len(prefix)], bytes(_regroup(values, 5, 8))


def _regroup(values: Iterable[int], width: int, into: int) -> Iterable[int]:
    """Yield the same bits in groups of another width; a remainder is dropped."""
    bits, count = 0, 0
    for value in values:
        bits, count = (bits << width) | value, count + width
        while count >= into:
            count -= into
            yield bits >> count
            bits &= (1 << count) - 1


def expand(prefix: str) -> list[int]:
    """Return the prefix as the checksum reads it (BIP 173)."""
    return [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]


def polymod(values: list[int]) -> int:
    """Return the checksum of 5-bit values (BIP 173)."""
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for index, generator in enumerate(_GENERATOR):
            check ^= generator if (top >> index) & 1 else 0
    return check
