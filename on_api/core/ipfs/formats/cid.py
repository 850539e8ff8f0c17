"""CIDs: the normalised form that is used as a key everywhere, and the profile by which files become
DAGs.

Pure: no I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import libipld

from on_api.core.errors import BadRequest

MAX_LENGTH = 128

RAW = 0x55
DAG_PB = 0x70
SHA2_256 = 0x12
IDENTITY = 0x00
_V0_START = bytes((SHA2_256, 32))
_V0_LENGTH = 46
_LETTERS = re.compile(r"[A-Za-z0-9+/=_-]+", re.ASCII)
"""Letters of all bases that write CIDs in plain text."""

CHUNK_BYTES = 1024 * 1024
MAX_LINKS = 1024

ADD_OPTIONS: dict[str, str] = {
    "cid-version": "1",
    "raw-leaves": "true",
    "chunker": f"size-{CHUNK_BYTES}",
    "max-file-links": str(MAX_LINKS),
    "max-directory-links": "0",
    "max-hamt-fanout": "256",
    "hash": "sha2-256",
}
"""The profile `unixfs-v1-2025` (IPIP-499) as options of Kubo's RPC `add`. Always sent: the defaults
differ by node and by release, and an option misspelt is silently ignored."""

# Digest lengths by multihash code; identity may hold any bytes up to Kubo's own limit.
_DIGEST_BYTES: dict[int, range] = {
    IDENTITY: range(129),
    0x11: range(20, 21),  # sha1, used by old git objects
    SHA2_256: range(32, 33),
    0x13: range(64, 65),  # sha2-512
    0x14: range(64, 65),  # sha3-512
    0x15: range(48, 49),  # sha3-384
    0x16: range(32, 33),  # sha3-256
    0x17: range(28, 29),  # sha3-224
    0x1B: range(32, 33),  # keccak-256
    0x1E: range(20, 33),  # blake3
    0xB220: range(32, 33),  # blake2b-256
    0xB240: range(64, 65),  # blake2b-512
}


@dataclass(frozen=True, slots=True)
class Cid:
    """A parsed CID. Versions 0 and 1 of one CID are equal; its text is CIDv1 in base32."""

    codec: int
    hash_code: int
    digest: bytes

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse a CID of any version and base. Raises `BadRequest` for everything else."""
        if len(text) > MAX_LENGTH or _LETTERS.fullmatch(text) is None:
            raise BadRequest("cid: not a valid CID.")
        is_version_0 = len(text) == _V0_LENGTH and text.startswith("Qm")
        try:
            _, raw = libipld.decode_multibase(f"z{text}" if is_version_0 else text)
        except ValueError:
            raise BadRequest("cid: not a valid CID.") from None
        return cls.from_bytes(raw)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Parse a binary CID. Raises `BadRequest` unless it is one and nothing else."""
        try:
            cid, length = cls.at_start_of(raw)
        except IndexError:
            raise BadRequest("cid: not a valid CID.") from None
        if length != len(raw):
            raise BadRequest("cid: not a valid CID.")
        return cid

    @classmethod
    def at_start_of(cls, raw: bytes) -> tuple[Self, int]:
        """Parse the binary CID at the start of `raw`; return it and its length in bytes.

        Raises `BadRequest` or `IndexError` when it doesn't begin with one.
        """
        codec, position = DAG_PB, 0
        if raw[:2] != _V0_START:
            version, position = read_varint(raw, 0)
            if version != 1:
                raise BadRequest("cid: this CID version is not supported.")
            codec, position = read_varint(raw, position)
        code, position = read_varint(raw, position)
        length, position = read_varint(raw, position)
        digest = raw[position : position + length]
        if len(digest) != length:
            raise BadRequest("cid: the CID is truncated.")
        cid = cls(codec, code, bytes(digest))._checked()
        end = position + length
        # A varint that is longer than necessary would be another CID of the same meaning.
        if raw[:2] != _V0_START and cid.raw != raw[:end]:
            raise BadRequest("cid: not a valid CID.")
        return cid, end

    @property
    def raw(self) -> bytes:
        """The binary CIDv1."""
        return _head(self.codec, self.hash_code, len(self.digest)) + self.digest

    @property
    def inline(self) -> bytes | None:
        """The block that an identity CID holds itself; None for every other CID."""
        return self.digest if self.hash_code == IDENTITY else None

    def __str__(self) -> str:
        return libipld.encode_multibase("b", self.raw)

    def _checked(self) -> Self:
        if len(self.digest) not in _DIGEST_BYTES.get(self.hash_code, range(0)):
            raise BadRequest("cid: its hash function or digest length is not supported.")
        return self


def normalise(cid: str) -> str:
    """Return any valid CID as CIDv1 in base32. Raises `BadRequest` for everything else."""
    return str(Cid.from_text(cid))


def encode(codec: int, hash_code: int, digest: bytes) -> str:
    """Return a CIDv1 in base32 from its parts."""
    return str(Cid(codec, hash_code, digest))


def raw_leaf_cid(sha256_digest: bytes) -> str:
    """Return the CID of a file of at most `CHUNK_BYTES` under the profile: one raw block."""
    return encode(RAW, SHA2_256, sha256_digest)


@lru_cache(256)
def _head(codec: int, hash_code: int, length: int) -> bytes:
    return b"\x01" + varint(codec) + varint(hash_code) + varint(length)


def varint(number: int) -> bytes:
    """Return a number in unsigned LEB128, as multiformats and protobuf write numbers."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def read_varint(raw: bytes, position: int) -> tuple[int, int]:
    """Return the number at a position and the position after it. Raises `BadRequest` for one over
    63 bits, `IndexError` for a cut one."""
    number = shift = 0
    while True:
        byte = raw[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
        if shift > 63:
            raise BadRequest("A number is too long.")
