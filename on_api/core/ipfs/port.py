"""The port to IPFS: the calls that on-api makes of a node, whatever implements them (Kubo, the
in-memory node of the tests, later a cluster).

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
    """A file is completely on the node, but not pinned: its pin was never made, or removed at
    once."""

    def __init__(self, added: Added) -> None:
        super().__init__("The IPFS node stored the file but did not pin it.")
        self.added = added


@dataclass(frozen=True, slots=True)
class NodePin:
    """A recursive pin on exactly this CID."""

    cid: str
    name: str


@dataclass(frozen=True, slots=True)
class DagStat:
    """Size of a DAG or of the present part of it: bytes and number of its distinct blocks."""

    size: int
    blocks: int


@dataclass(frozen=True, slots=True)
class NodeVersion:
    """The node's program. `tested` says whether on-api was tested with this version."""

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
    """Bytes of blocks that the node has sent to other nodes and received from them since it
    started."""

    sent: int
    received: int


class IpfsNode(Protocol):
    """One IPFS node, or what acts as one."""

    async def add(self, source: AsyncIterator[Bytes], *, pin_name: str) -> Added:
        """Store `source` as one UnixFS file of the profile in `cid.py` and pin it recursively as
        `pin_name`.

        Returns only when the root's CID, its size and its pin have been verified with the node. An
        exception raised by `source` is passed on as it is, and then nothing was pinned. Raises
        `StoredUnpinned` when everything is there but the pin: the same content may just have been
        unpinned.
        """
        ...

    def read(
        self, cid: str, *, offset: int, length: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open the bytes `[offset, offset + length)` of the UnixFS file `cid`, from blocks that the
        node has itself.

        Entering the context raises the errors that are known before the first byte. The iterator
        raises `NodeTruncated` when fewer than `length` bytes came, so that a short read never
        passes for complete.
        """
        ...

    async def pin_status(self, cid: str) -> NodePin | None:
        """Return the recursive pin on exactly `cid`, or None."""
        ...

    def pins(self, *, name: str = "") -> AsyncIterator[NodePin]:
        """Yield every recursive pin whose name contains `name`, as the node lists them.

        The list may be cut without an error: that a CID is missing from it proves nothing.
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
        """Pin `cid` recursively as `name`; return when its whole DAG is there and pinned.

        With `fetch` missing blocks are requested from the network for as long as the caller waits;
        when the call is cancelled, nothing is pinned. `progress` (quick) is called with the part
        that is there. Never call it for a CID that is pinned already: Kubo drops the old pin before
        it begins, and does not restore it on failure. Raises `BlocksMissing` without `fetch`.
        """
        ...

    async def pin_all(self, cids: Sequence[str], *, name: str) -> None:
        """Pin several DAGs whose blocks are all there, each recursively and all as `name`.

        A single call to the node, and so not for too many. Returns when all are pinned; on any
        error some may be. Never call it for a CID that is pinned already: see `pin`.
        """
        ...

    async def unpin(self, cid: str) -> None:
        """Remove the recursive pin on exactly `cid`; no error if there is none."""
        ...

    async def dag_stat(self, cid: str, *, fetch: bool = False) -> DagStat:
        """Walk the whole DAG on the node.

        Raises `BlocksMissing` when it isn't complete; with `fetch` missing blocks are requested
        from the network for as long as the caller waits.
        """
        ...

    async def dag_stats(self, cids: Sequence[str], *, seconds: float) -> Sequence[DagStat]:
        """Walk several whole DAGs on the node, in one call.

        Raises `BlocksMissing` when any of them isn't complete, and `NodeTimeout` when it takes
        longer than `seconds`.
        """
        ...

    def car(self, cid: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a CARv1 of the whole DAG from blocks that the node has itself: depth first, every
        block once. A CAR that ends too early is only detected by following its links
        (`dag.Walk`)."""
        ...

    async def block(self, cid: str) -> bytes | None:
        """Return one block that the node has itself, or None. Not verified."""
        ...

    async def import_blocks(self, blocks: AsyncIterator[tuple[Cid, bytes]]) -> DagStat:
        """Store verified blocks as they come, unpinned; return when all of them are durable.

        Until they are pinned the next garbage collection removes them. An exception raised by
        `blocks` is passed on as it is; blocks before it may be stored, or not. Raises `BadCar` for
        a block that the node can't read.
        """
        ...

    async def store_bundle(self, bundle: Bundle, *, pin_name: str) -> None:
        """Store a bundle's blocks and its node, and pin that node recursively as `pin_name`.

        Returns only when the node has confirmed that all of them are stored and the bundle is
        pinned. The caller ensures that no garbage collection runs meanwhile.
        """
        ...

    async def connect(self, address: str) -> None:
        """Connect to a peer by its multiaddr. Raises `NodeError` when it can't be reached."""
        ...

    async def addresses(self) -> list[str]:
        """Return the multiaddrs at which the node listens, each ending in `/p2p/` and its
        identity."""
        ...

    async def collect_garbage(self) -> int:
        """Remove every block that no pin covers. Returns their number; there is no time limit.

        Inside the node it waits for every `add` and `pin` under way, and later ones wait for it.
        """
        ...

    async def version(self) -> NodeVersion:
        """Return the node's program and version."""
        ...

    async def peer_id(self) -> str:
        """Return the node's libp2p identity."""
        ...

    async def peer_count(self) -> int:
        """Return the number of peers that the node is connected to."""
        ...

    async def exchanged(self) -> Exchanged:
        """Return the bytes exchanged with other nodes (Bitswap), duplicates included."""
        ...

    async def repo_stat(self) -> RepoStat:
        """Return size and limit of the node's store."""
        ...

    async def close(self) -> None:
        """Close every connection. The node itself keeps running."""
        ...
