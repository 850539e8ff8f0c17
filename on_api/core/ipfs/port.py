"""The port to IPFS: what on-api asks of a node, whoever answers (Kubo, the in-memory node of the
tests, later a cluster).

Holds the protocol and its plain data. Knows nothing of HTTP, of the database or of users.
Every method raises a `NodeError` (502, 503, 504) or `InsufficientStorage` (507) in bounded time,
and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from on_api.core.errors import NodeError
from on_api.core.ipfs.formats.bundle import Bundle
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.streams.blocks import Bytes


@dataclass(frozen=True, slots=True)
class Added:
    """A file that the node has stored completely and pinned recursively."""

    cid: str
    """Root, CIDv1 in base32."""
    size: int
    """Bytes of the file."""
    dag_size: int
    """Cumulative size of the DAG in bytes: what the file costs on the node."""


class StoredUnpinned(NodeError):
    """All of a file is on the node, but no pin of it: never made, or taken away at once."""

    def __init__(self, added: Added) -> None:
        super().__init__("The IPFS node stored the file but did not pin it.")
        self.added = added


@dataclass(frozen=True, slots=True)
class PinStatus:
    """A recursive pin on exactly this CID."""

    cid: str
    name: str


@dataclass(frozen=True, slots=True)
class DagStat:
    """A DAG, or what is there of it: bytes and number of its different blocks."""

    size: int
    blocks: int


@dataclass(frozen=True, slots=True)
class NodeVersion:
    """Which program the node is. `tested` says whether on-api was tested with this version."""

    agent: str
    version: str
    tested: bool


@dataclass(frozen=True, slots=True)
class RepoStat:
    """The node's store, in bytes; `storage_max` is its own soft limit."""

    size: int
    storage_max: int


@dataclass(frozen=True, slots=True)
class Exchanged:
    """Bytes of blocks that the node has sent to other nodes and got from them, since it started."""

    sent: int
    received: int


class IpfsNode(Protocol):
    """One IPFS node (or what acts as one)."""

    async def add(self, source: AsyncIterator[Bytes], *, pin_name: str) -> Added:
        """Store `source` as one UnixFS file of the profile in `cid.py` and pin it recursively as
        `pin_name`.

        Returns only when the root's CID, its size and its pin have been verified with the node. An
        exception raised by `source` comes out as it is, and then nothing was pinned. Raises
        `StoredUnpinned` when all is there but the pin: the same may just have been unpinned.
        """
        ...

    def read(
        self, cid: str, *, offset: int, length: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open the bytes `[offset, offset + length)` of the UnixFS file `cid`, from what the node
        has itself.

        Entering the context raises what can be known before the first byte; the iterator raises
        `NodeTruncated` when fewer than `length` bytes came, so that nothing short ever passes for
        complete.
        """
        ...

    async def pin_status(self, cid: str) -> PinStatus | None:
        """The recursive pin on exactly `cid`, or None."""
        ...

    def pins(self, *, name: str = "") -> AsyncIterator[PinStatus]:
        """Every recursive pin whose name contains `name`, as the node lists them.

        The list may be cut without a word: that a CID is missing from it proves nothing.
        """
        ...

    async def pin(
        self,
        cid: str,
        *,
        name: str,
        fetch: bool,
        progress: Callable[[DagStat], None] | None = None,
    ) -> DagStat:
        """Pin `cid` recursively as `name`; return when its whole DAG is there, and pinned.

        With `fetch` missing blocks are asked of the network, for as long as the caller waits:
        cancelling gives up, and then nothing is pinned. `progress` (quick) hears how much is there.
        Never call it for what is pinned already: Kubo drops the old pin before it begins, and does
        not restore it on failure. Raises `BlocksMissing` without `fetch`.
        """
        ...

    async def pin_all(self, cids: Sequence[str], *, name: str) -> None:
        """Pin several DAGs, each recursively and all as `name`, whose blocks are all there.

        One call, and so for not too many. Returns when all are pinned; on any error some may be.
        Never call it for what is pinned already: see `pin`.
        """
        ...

    async def unpin(self, cid: str) -> None:
        """Remove the recursive pin on exactly `cid`; fine when there is none."""
        ...

    async def dag_stat(self, cid: str, *, fetch: bool = False) -> DagStat:
        """Walk the whole DAG on the node.

        Raises `BlocksMissing` when it isn't all there; with `fetch` missing blocks are asked of the
        network for as long as the caller waits.
        """
        ...

    async def dag_stats(self, cids: Sequence[str], *, seconds: float) -> Sequence[DagStat]:
        """Walk several whole DAGs on the node, in one call.

        Raises `BlocksMissing` when one isn't all there, whichever, and `NodeTimeout` when it takes
        longer than `seconds`.
        """
        ...

    def car(self, cid: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a CARv1 of the whole DAG from what the node has itself: depth first, every block
        once. Nothing tells that it ends too soon but following it (`dag.Walk`)."""
        ...

    async def block(self, cid: str) -> bytes | None:
        """One block, from what the node has itself; None when it hasn't. Not verified."""
        ...

    async def import_blocks(self, blocks: AsyncIterator[tuple[Cid, bytes]]) -> DagStat:
        """Store verified blocks as they come, unpinned; returns when all of them are durable.

        Until something pins them the next garbage collection removes them. An exception raised by
        `blocks` comes out as it is; what came before it may be stored, or not. Raises `BadCar` for
        a block that the node can't read.
        """
        ...

    async def store_bundle(self, bundle: Bundle, *, pin_name: str) -> None:
        """Store a bundle's blocks and its node, and pin that one recursively as `pin_name`.

        Returns only when the node has said that all of them are stored and that it has pinned the
        bundle. The caller sees to it that no garbage is collected meanwhile.
        """
        ...

    async def connect(self, address: str) -> None:
        """Connect to a peer by its multiaddr. Raises `NodeError` when it can't be reached."""
        ...

    async def addresses(self) -> list[str]:
        """Where the node listens: multiaddrs, each ending in `/p2p/` and its identity."""
        ...

    async def collect_garbage(self) -> int:
        """Remove every block that no pin covers. Returns how many; takes as long as it takes.

        Waits inside the node for all `add` and `pin` under way, and every later one waits for it.
        """
        ...

    async def version(self) -> NodeVersion:
        """The node's program and version."""
        ...

    async def peer_id(self) -> str:
        """The node's libp2p identity."""
        ...

    async def peer_count(self) -> int:
        """How many peers the node is connected to."""
        ...

    async def exchanged(self) -> Exchanged:
        """What the node has exchanged with other nodes (Bitswap), duplicates included."""
        ...

    async def repo_stat(self) -> RepoStat:
        """Size and limit of the node's store."""
        ...

    async def close(self) -> None:
        """Free every connection. The node itself goes on."""
        ...
