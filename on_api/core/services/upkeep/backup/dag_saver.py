"""Copying DAGs from the node into a backup: only blocks that it lacks, each hashed, every link
followed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from anyio import to_thread

from on_api.core.backoff import Backoff
from on_api.core.errors import BlocksMissing, NodeError, NodeUnavailable, StartupError
from on_api.core.ipfs.formats.car import CarError, CarReader
from on_api.core.ipfs.formats.cid import RAW, Cid
from on_api.core.ipfs.formats.dag import DagError, UnknownCodecError, links_of
from on_api.core.ipfs.port import IpfsNode
from on_api.core.services.content.walking import DamagedError
from on_api.core.services.upkeep.backup.block_files import BlockFiles, require_sound
from on_api.core.services.upkeep.backup.damages import MOST_TROUBLES
from on_api.core.services.upkeep.backup.root_index import RootIndex

BLOCKS_AT_ONCE = 16
"""Blocks in memory, each of 2 MiB at most."""
SETTLE_BLOCKS = 1000
SETTLE_BYTES = 128 * 1024 * 1024
"""Blocks and bytes after which those that were written are made durable together."""
RETRIES = Backoff(first=0.5, longest=15.0)
TRIES = 3
"""Times that a block is asked for which the node can't read."""
TRIES_WHILE_AWAY = 15
"""Times that it is asked for while the node can't be reached: about two minutes."""


class DagSaver:
    """Saves DAGs in one run."""

    def __init__(self, node: IpfsNode, blocks: BlockFiles, roots: RootIndex) -> None:
        self._node = node
        self._blocks = blocks
        self._roots = roots
        self._places = asyncio.Semaphore(BLOCKS_AT_ONCE)
        self._settling = asyncio.Lock()
        self._finished: list[str] = []
        """Roots whose blocks are all written, and perhaps not durable yet."""
        self.copied_blocks = 0
        self.copied_bytes = 0

    async def save(self, cid: str) -> Sequence[str]:
        """Copy what the backup lacks of a DAG. Returns what is wrong with it on the node; all its
        other blocks are copied nevertheless.

        Raises a `NodeError` when the node can't be asked any more, `StartupError` when the backup
        can't be written.
        """
        root = Cid.from_text(cid)
        try:
            troubles = await self._save_blocks(root)
        except UnknownCodecError:
            troubles = await self._save_car(root)
        if not troubles:
            self._finished.append(cid)
        await self._settle_much()
        return troubles

    async def settle(self) -> None:
        """Make durable what was copied, then record the roots that are whole."""
        async with self._settling:
            finished, self._finished = self._finished, []
            try:
                await to_thread.run_sync(self._blocks.settle)
            except OSError as error:
                raise _unwritable(error) from None
            if finished:
                await to_thread.run_sync(self._roots.add, finished)

    async def _save_blocks(self, root: Cid) -> Sequence[str]:
        troubles: list[str] = []
        seen: set[Cid] = set()
        pending = [root]
        while pending:
            # From the end, depth first: few are pending, however large the DAG.
            some, pending = pending[-BLOCKS_AT_ONCE:], pending[:-BLOCKS_AT_ONCE]
            found = await asyncio.gather(*map(self._take, some), return_exceptions=True)
            for each in found:
                if isinstance(each, DamagedError):
                    if len(troubles) < MOST_TROUBLES:
                        troubles.append(str(each))
                elif isinstance(each, BaseException):
                    raise each
                else:
                    # Leaves are not remembered: one that is met again is here already.
                    below = [link for link in each if link.codec == RAW or link not in seen]
                    pending += below
                    seen.update(link for link in below if link.codec != RAW)
            await self._settle_much()
        return troubles

    async def _take(self, cid: Cid) -> Sequence[Cid]:
        """Make sure that the backup has a block. Returns its links."""
        async with self._places:
            block = await to_thread.run_sync(self._look, cid)
            if block is None:
                block = await self._fetch(cid)
                await self._put(cid, block)
        try:
            return links_of(cid.codec, block)
        except UnknownCodecError:
            raise
        except DagError as error:
            raise DamagedError(f"block {cid} is not well formed") from error

    def _look(self, cid: Cid) -> bytes | None:
        """Return the backup's own block, of a leaf that is there nothing; None when it is to be
        copied."""
        if cid.inline is not None:
            return cid.inline
        if not self._blocks.has(cid):
            return None
        if cid.codec == RAW:
            return b""
        try:
            return self._blocks.read(cid)
        except DamagedError:
            return None  # copied anew

    async def _fetch(self, cid: Cid) -> bytes:
        """Read a block from the node. Raises `DamagedError` when it can't be had, a `NodeError`
        when the node itself can't."""
        failures = 0
        while True:
            try:
                block = await self._node.block(str(cid))
                break
            except NodeError as error:
                failures += 1
                is_away = isinstance(error, NodeUnavailable)
                if failures >= (TRIES_WHILE_AWAY if is_away else TRIES):
                    # A node that doesn't answer has lost nothing.
                    await self._node.peer_id()
                    raise DamagedError(f"block {cid} can't be read: {error.details}") from error
            await asyncio.sleep(RETRIES.pause(failures))
        if block is None:
            raise DamagedError(f"block {cid} is missing")
        require_sound(cid, block)
        return block

    async def _put(self, cid: Cid, block: bytes) -> None:
        try:
            is_new = await to_thread.run_sync(self._blocks.put, cid, block)
        except OSError as error:
            raise _unwritable(error) from None
        if is_new:
            self.copied_blocks += 1
            self.copied_bytes += len(block)

    async def _save_car(self, root: Cid) -> Sequence[str]:
        """Save a DAG of which only the node knows the links, and list its blocks."""
        taken: list[str] = []
        try:
            async with self._node.car(str(root)) as chunks:
                async for cid, block in CarReader(chunks).blocks():
                    if not await to_thread.run_sync(self._blocks.has, cid):
                        await self._put(cid, block)
                        await self._settle_much()
                    taken.append(str(cid))
            stat = await self._node.dag_stat(str(root))
        except (CarError, BlocksMissing) as error:
            return [f"it can't be read to its end ({error})"]
        if stat.blocks > len(taken):
            return [f"{stat.blocks - len(taken)} of its blocks can't be read"]
        await to_thread.run_sync(self._roots.list_blocks, str(root), taken)
        return []

    async def _settle_much(self) -> None:
        if self._settling.locked():
            return
        number, size = self._blocks.unsettled
        if number >= SETTLE_BLOCKS or size >= SETTLE_BYTES:
            await self.settle()


def _unwritable(error: OSError) -> StartupError:
    return StartupError(
        f"The backup can't be written ({error.strerror}): nothing of it is lost. Make room, and "
        "run it again; it goes on where it stopped."
    )
