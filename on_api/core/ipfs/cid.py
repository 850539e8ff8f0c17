"""CIDs: the one form everything is keyed by, and the one profile by which files become DAGs.

Pure: talks to nobody.
"""

from __future__ import annotations

import libipld

from on_api.core.errors import BadRequest

MAX_LENGTH = 128

RAW = 0x55
DAG_PB = 0x70
SHA2_256 = 0x12

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

# Digest lengths by multihash code; identity may hold anything up to the limit that Kubo itself
# sets.
_DIGEST_BYTES: dict[int, range] = {
    0x00: range(129),  # identity
    0x11: range(20, 21),  # sha1, of old git objects
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


def normalise(cid: str) -> str:
    """CIDv1 in base32 for any valid CID. Raises `BadRequest` for everything else."""
    if not 2 <= len(cid) <= MAX_LENGTH or not cid.isascii() or not cid.isalnum():
        raise BadRequest("cid: this is no CID.")
    try:
        parts = libipld.decode_cid(cid)
    except ValueError:
        raise BadRequest("cid: this is no CID.") from None
    digest: bytes = parts["hash"]["digest"]
    code: int = parts["hash"]["code"]
    if len(digest) not in _DIGEST_BYTES.get(code, range(0)) or len(digest) != parts["hash"]["size"]:
        raise BadRequest("cid: its hash function or length is not accepted.")
    return encode(parts["codec"], code, digest)


def encode(codec: int, hash_code: int, digest: bytes) -> str:
    """A CIDv1 in base32 from its parts."""
    raw = b"".join((b"\x01", varint(codec), varint(hash_code), varint(len(digest)), digest))
    text: str = libipld.encode_cid(raw)
    return text


def raw_leaf_cid(sha256_digest: bytes) -> str:
    """The CID of a file of at most `CHUNK_BYTES` under the profile: one raw block."""
    return encode(RAW, SHA2_256, sha256_digest)


def varint(number: int) -> bytes:
    """Unsigned LEB128, as multiformats and protobuf write numbers."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
