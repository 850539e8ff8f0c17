"""Reading a whole DAG from the node: every block hashed, every link followed."""

from __future__ import annotations

from on_api.core.errors import BlocksMissing
from on_api.core.ipfs.formats.car import CarError, CarReader, check_block
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.ipfs.formats.dag import DagError, UnknownCodecError, Walk
from on_api.core.ipfs.port import DagStat, IpfsNode


class DamagedError(Exception):
    """Error: a DAG is not whole on the node; the message says what is wrong."""


async def read_dag(node: IpfsNode, cid: str) -> DagStat:
    """Read the DAG from the node alone. Returns its bytes and its number of different blocks.

    Raises `DamagedError`, or a `NodeError` when the node can't be asked.
    """
    root = Cid.from_text(cid)
    if root.inline is not None:
        return await _ask(node, cid)
    walk = Walk(root)
    try:
        async with node.car(cid) as chunks:
            async for block_cid, block in CarReader(chunks).blocks():
                walk.take(block_cid, block)
        walk.end()
    except UnknownCodecError:
        return await _ask(node, cid)
    except DagError as error:
        raise DamagedError(str(error)) from error
    except CarError as error:
        # At a missing block the gateway writes text into the stream and ends it.
        raise DamagedError(f"block {walk.wanted} can't be read ({error})") from error
    except BlocksMissing as error:
        raise DamagedError("its root block is missing") from error
    return DagStat(walk.bytes, walk.blocks)


async def read_block(node: IpfsNode, cid: Cid) -> bytes:
    """Read one block from the node's own store. Raises `DamagedError` when it is missing or does
    not match its CID, a `NodeError` when the node can't be asked."""
    block = await node.block(str(cid))
    if block is None:
        raise DamagedError(f"block {cid} is missing")
    try:
        check_block(cid, block)
    except CarError as error:
        raise DamagedError(str(error)) from error
    return block


async def _ask(node: IpfsNode, cid: str) -> DagStat:
    """Ask the node whether all blocks are there, for DAGs that only the node can follow."""
    try:
        return await node.dag_stat(cid)
    except BlocksMissing as error:
        raise DamagedError("blocks are missing") from error
