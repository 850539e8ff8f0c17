"""The files in which a Kubo keeps its blocks: taken away and damaged behind its back."""

from __future__ import annotations

import base64
from pathlib import Path

from on_api.core.ipfs.formats.cid import Cid, varint


class Blockstore:
    """flatfs in a repo, as `ipfs init` makes it: `/repo/flatfs/shard/v1/next-to-last/2`."""

    def __init__(self, repo: Path) -> None:
        self._folder = repo / "blocks"

    def has(self, cid: str) -> bool:
        """Whether the block's file is there."""
        return self._path(cid).exists()

    def take(self, cid: str) -> bytes:
        """Remove a block; returns what it was."""
        path = self._path(cid)
        block = path.read_bytes()
        path.unlink()
        return block

    def put(self, cid: str, block: bytes) -> None:
        """Write a block, be it what its CID says or not."""
        path = self._path(cid)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(block)

    def _path(self, cid: str) -> Path:
        # Blocks are kept by multihash: CIDv0, v1 and raw of one are the same file.
        parsed = Cid.from_text(cid)
        multihash = varint(parsed.hash_code) + varint(len(parsed.digest)) + parsed.digest
        key = base64.b32encode(multihash).decode().rstrip("=")
        return self._folder / key[-3:-1] / f"{key}.data"
