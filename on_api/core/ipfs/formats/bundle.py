"""Bundles: small DAG-CBOR nodes, each of which links the blocks of many small files, so that one
pin covers them all.

Pure: no I/O. Knows nothing of the files' owners.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from on_api.core.ipfs.formats.cid import SHA2_256, Cid
from on_api.core.ipfs.formats.dag import DAG_CBOR

MOST_LINKS = 256
"""Number of links in one bundle, whose node then has 11 KiB."""

Block = tuple[Cid, bytes]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A node and the blocks that it links. `dag_size` is the bytes of all of them."""

    cid: Cid
    node: bytes
    blocks: Sequence[Block]
    dag_size: int


def make_bundle(blocks: Sequence[Block], job: bytes) -> Bundle:
    """Bundle up to `MOST_LINKS` different blocks.

    The node is the DAG-CBOR of `{"job": job, "files": [CID, …]}`. With a unique `job` (16 bytes) no
    two bundles are equal, even if their files are.
    """
    if not 0 < len(blocks) <= MOST_LINKS or len(job) != 16:
        raise ValueError("a bundle must have 1 to 256 blocks and a job ID of 16 bytes")
    links = b"".join(_link(cid.raw) for cid, _ in blocks)
    # Keys in DAG-CBOR's order: the shorter one first.
    node = b"\xa2\x63job\x50" + job + b"\x65files" + _array_head(len(blocks)) + links
    cid = Cid(DAG_CBOR, SHA2_256, hashlib.sha256(node).digest())
    return Bundle(cid, node, blocks, len(node) + sum(len(block) for _, block in blocks))


def _link(raw: bytes) -> bytes:
    """Return a DAG-CBOR link: tag 42 over the binary CID with its prefix of zero (the DAG-CBOR
    specification)."""
    return b"\xd8\x2a\x58" + bytes((1 + len(raw), 0)) + raw


def _array_head(length: int) -> bytes:
    if length < 24:
        return bytes((0x80 | length,))
    return bytes((0x98, length)) if length < 256 else b"\x99" + length.to_bytes(2, "big")
