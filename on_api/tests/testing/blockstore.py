"""Kubo's block files, which tests remove and damage without Kubo's knowledge."""

from __future__ import annotations

import base64
from pathlib import Path

from on_api.core.ipfs.formats.cid import Cid, varint


class Blockstore:
    """The flatfs of a repo as `ipfs init` makes it: `/repo/flatfs/shard/v1/next-to-last/2`."""

    def __init__(self, repo: Path) -> None:
        self._folder = repo / "blocks"

    def has(self, cid: str) -> bool:
        """Return whether the block's file exists."""
        return self._path(cid).exists()

    def take(self, cid: str) -> bytes:
        """Remove a block, and return its bytes."""
        path = self._path(cid)
        block = path.read_bytes()
        path.unlink()
        return block

    def put(self, cid: str, block: bytes) -> None:
        """Write a block, even one that does not match its CID."""
        path = self._path(cid)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(block)

    def _path(self, cid: str) -> Path:
        # Blocks are stored by multihash: CIDv0, v1 and raw CIDs of one hash share a file.
        parsed = Cid.from_text(cid)
        multihash = varint(parsed.hash_code) + varint(len(parsed.digest)) + parsed.digest
        key = base64.b32encode(multihash).decode().rstrip("=")
        return self._folder / key[-3:-1] / f"{key}.data"
