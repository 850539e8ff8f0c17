"""Retrieval of whole DAGs onto the node from untrusted sources: a third party's gateway, or an
uploaded CAR. No block is passed to the node before its hash has been verified.

Blocks stored here have no pin yet, and the next garbage collection would remove them. The caller
holds a lease (`content/leases.py`) from before the first byte until the pin is recorded: while a
lease lives, no collection begins. After a crash the blocks are garbage until they are needed again,
and then they are found and not fetched twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from on_api.core.errors import BadCar, BlocksMissing, PayloadTooLarge
from on_api.core.ipfs.formats.car import (
    MAX_BLOCK_BYTES,
    CarError,
    CarReader,
    WrongBlockError,
    check_block,
)
from on_api.core.ipfs.formats.cid import RAW, Cid
from on_api.core.ipfs.formats.dag import DagError, TooComplexError, UnknownCodecError, links_of
from on_api.core.ipfs.port import DagStat, IpfsNode
from on_api.core.net.errors import SourceError, SourceMalformed, SourceUnavailable
from on_api.core.streams.blocks import Bytes

if TYPE_CHECKING:
    from on_api.core.net.outbound import Outbound, OutboundResponse

CAR_TYPE = "application/vnd.ipld.car"
CAR_ACCEPTED = f"{CAR_TYPE}; version=1; order=dfs; dups=n"
BLOCK_TYPE = "application/vnd.ipld.raw"
MAX_WANTED_BLOCKS = 2**20
"""Number of blocks that are known only by a link at one moment: about 300 bytes of memory each."""
MAX_REPEATED_BYTES = 64 * 1024 * 1024
"""Bytes of repeated blocks that a CAR may have, on top of the bytes of its distinct ones."""

ProgressCallback = Callable[[DagStat], None]


@dataclass(frozen=True, slots=True)
class FetchedDag:
    """A whole DAG that is on the node now, every block of it verified."""

    blocks: int
    """Number of distinct blocks."""
    bytes: int
    """Bytes of these blocks."""
    fetched_blocks: int
    """Number of the blocks that came from the gateway; the others were here."""
    fetched_bytes: int


@dataclass(frozen=True, slots=True)
class TakenCar:
    """Result of storing a CAR on the node."""

    roots: Sequence[tuple[str, DagStat]]
    """Every root, as CIDv1 in base32, and the size of the whole DAG below it."""
    blocks: int
    """Number of blocks in the CAR; repeated ones count each time."""
    bytes: int


class GatewayFetcher:
    """Fetches from one trustless gateway (the IPFS gateway specification): as CARs, and block by
    block if it offers none."""

    def __init__(self, node: IpfsNode, outbound: Outbound, gateway_url: str) -> None:
        """Create a fetcher. Raises `AddressRefused` for a URL that on-api must not call."""
        from on_api.core.net.outbound import check_url

        self._node = node
        self._outbound = outbound
        # Many users add `/ipfs`, with which every path on it begins.
        origin = gateway_url.rstrip("/").removesuffix("/ipfs")
        self._url = check_url(origin, allow_private=outbound.limits.allow_private)
        self._gives_cars = True

    async def fetch(
        self, cid: str, *, max_bytes: int | None = None, progress: ProgressCallback | None = None
    ) -> FetchedDag:
        """Fetch the blocks of the DAG of `cid` that the node lacks; it is not pinned.

        `progress` (quick) is called with the part that is there. Memory grows by the blocks' CIDs.
        Raises a `SourceError` (`SourceMissing`: the gateway lacks a block; `SourceMalformed`: it
        sends something else, or blocks whose links can't be read), `PayloadTooLarge` when the DAG
        has more than `max_bytes`, or a `NodeError`. Blocks verified until then stay, and are not
        fetched again.
        """
        missing = _Missing(Cid.from_text(cid), max_bytes, progress)
        tries = 0
        while (wanted := await self._find_missing(missing)) is not None:
            before = missing.blocks
            failure: SourceError | None = None
            try:
                await self._fetch_some(wanted, missing)
            except _BrokenOffError as error:  # all other errors are final, or were retried already
                failure = error
            if missing.wanted is None:
                break
            tries = 0 if missing.blocks > before else tries + 1
            if tries > self._outbound.limits.retries:
                raise failure or SourceMalformed(
                    f"The response of {self._url.host} ends before block {missing.wanted}."
                )
            if failure is not None or tries:
                await self._outbound.pause(tries)
        return missing.result()

    async def _find_missing(self, missing: _Missing) -> Cid | None:
        """Follow the blocks that the node has already; return the first one that it lacks, or
        None."""
        while (wanted := missing.wanted) is not None:
            block = await self._node.block(str(wanted))
            if block is None:
                return wanted
            try:
                check_block(wanted, block)
            except CarError:  # damaged, or of a hash function that only the node knows
                return wanted
            missing.take(wanted, block, fetched=False)
        return None

    async def _fetch_some(self, wanted: Cid, missing: _Missing) -> None:
        """Fetch a block, or as much of the DAG below it as one answer brings."""
        if wanted.codec != RAW and self._gives_cars:
            try:
                await self._fetch_car(wanted, missing)
            except _NoCarError:
                self._gives_cars = False
            else:
                return
        await self._fetch_block(wanted, missing)

    async def _fetch_car(self, wanted: Cid, missing: _Missing) -> None:
        url = self._url.copy_with(path=f"{self._url.path.rstrip('/')}/ipfs/{wanted}")
        query = {"format": "car", "dag-scope": "all", "car-order": "dfs", "car-dups": "n"}
        try:
            opening = self._outbound.open(url, query=query, accept=CAR_ACCEPTED)
            async with opening as answer:
                if _media_type(answer) != CAR_TYPE:
                    raise _NoCarError
                arriving = _Arriving(answer.chunks, wanted, missing, self._outbound)
                async with aclosing(arriving.blocks()) as blocks:
                    await self._node.import_blocks(blocks)
        except BadCar as error:  # well formed to on-api, not to the node
            raise SourceMalformed(error.details) from error
        except SourceError as error:
            # A status without a meaning of its own: 400, 406, 415, 501 …
            if type(error) is SourceError:
                raise _NoCarError from error
            raise
        # Raised only now, so that the blocks verified before are kept.
        if arriving.failure is not None:
            raise arriving.failure

    async def _fetch_block(self, wanted: Cid, missing: _Missing) -> None:
        url = self._url.copy_with(path=f"{self._url.path.rstrip('/')}/ipfs/{wanted}")
        block = bytearray()
        try:
            async with (
                asyncio.timeout(self._outbound.limits.block_timeout),
                self._outbound.open(url, query={"format": "raw"}, accept=BLOCK_TYPE) as answer,
            ):
                if _media_type(answer) != BLOCK_TYPE:
                    raise SourceMalformed(f"{self._url.host} is not a trustless gateway.")
                try:
                    async for chunk in answer.chunks:
                        block += chunk
                        if len(block) > MAX_BLOCK_BYTES:
                            break
                except SourceUnavailable as error:
                    raise _BrokenOffError(error.details) from error
            check_block(wanted, bytes(block))
        except TimeoutError as error:
            raise _BrokenOffError(f"{self._url.host} is too slow.") from error
        except CarError as error:
            raise SourceMalformed(f"{self._url.host} sends invalid data: {error}.") from error
        missing.take(wanted, bytes(block), fetched=True)

        async def only_this() -> AsyncIterator[tuple[Cid, bytes]]:
            yield wanted, bytes(block)

        await self._node.import_blocks(only_this())


async def take_car(
    node: IpfsNode,
    chunks: AsyncIterator[Bytes],
    *,
    expected_roots: Sequence[str] | None = None,
    max_bytes: int | None = None,
) -> TakenCar:
    """Store the blocks of a CAR (version 1 or 2) on the node, unpinned; memory is bounded.

    The whole DAG of every root must be there afterwards, including blocks that the node had before.
    Raises `BadCar` if it isn't a CAR, is cut, has no root or others than `expected_roots`, has a
    block that doesn't match its CID, is over 2 MiB or too complex, or lacks blocks;
    `PayloadTooLarge` when its blocks have more than `max_bytes` together; a `NodeError`; and any
    exception of `chunks`.
    """
    reader = CarReader(chunks)
    count = size = 0

    async def checked() -> AsyncGenerator[tuple[Cid, bytes]]:
        nonlocal count, size
        try:
            async for cid, block in reader.blocks():
                if count == 0:
                    _check_roots(reader.roots, expected_roots)
                count, size = count + 1, size + len(block)
                if max_bytes is not None and size > max_bytes:
                    raise PayloadTooLarge(
                        f"The blocks of the CAR exceed {max_bytes} bytes in total."
                    )
                _check_readable(cid, block)
                yield cid, block
        except (CarError, DagError) as error:
            raise BadCar(f"This CAR is not acceptable: {error}.") from error

    async with aclosing(checked()) as blocks:
        await node.import_blocks(blocks)
    _check_roots(reader.roots, expected_roots)
    roots = []
    for root in dict.fromkeys(reader.roots):
        try:
            roots.append((str(root), await node.dag_stat(str(root))))
        except BlocksMissing as error:
            raise BadCar(
                f"The CAR does not contain all blocks of {root}{await _which(node, root)}."
            ) from error
    return TakenCar(roots, count, size)


class _NoCarError(Exception):
    """The gateway offers no CARs; it may offer single blocks."""


class _BrokenOffError(SourceUnavailable):
    """An answer broke off after it had begun; the rest can be requested again."""


class _Missing:
    """Blocks of one DAG that aren't known to be on the node, as far as its links have been read."""

    def __init__(self, root: Cid, max_bytes: int | None, progress: ProgressCallback | None) -> None:
        self.blocks = 0
        self.bytes = 0
        self._fetched = DagStat(0, 0)
        self._max_bytes = max_bytes
        self._progress = progress
        self._seen: set[Cid] = set()
        # In the order in which they are needed, the next one last.
        self._wanted: dict[Cid, None] = {}
        self._want([root])

    @property
    def wanted(self) -> Cid | None:
        """The next block, depth first; None when the whole DAG was seen."""
        return next(reversed(self._wanted), None)

    def wants(self, cid: Cid) -> bool:
        """Return whether a block of the DAG links to this one, which has not come yet."""
        return cid in self._wanted

    def has(self, cid: Cid) -> bool:
        """Return whether this block has come."""
        return cid in self._seen

    def take(self, cid: Cid, block: bytes, *, fetched: bool) -> None:
        """Record a wanted, verified block. Raises `SourceMalformed` if its links can't be read, and
        `PayloadTooLarge` above `max_bytes`."""
        try:
            links = links_of(cid.codec, block)
        except UnknownCodecError as error:
            raise SourceMalformed(
                f"on-api can't decode block {cid} ({error}); try the route `ipfs`."
            ) from error
        except DagError as error:
            raise SourceMalformed(f"Block {cid} is malformed.") from error
        if self._max_bytes is not None and self.bytes + len(block) > self._max_bytes:
            raise PayloadTooLarge(f"The content exceeds {self._max_bytes} bytes.")
        del self._wanted[cid]
        self._seen.add(cid)
        self.blocks += 1
        self.bytes += len(block)
        if fetched:
            self._fetched = DagStat(self._fetched.size + len(block), self._fetched.blocks + 1)
        self._want(links)
        if self._progress is not None:
            self._progress(DagStat(self.bytes, self.blocks))

    def result(self) -> FetchedDag:
        """Return the totals, once no block is wanted any more."""
        return FetchedDag(self.blocks, self.bytes, self._fetched.blocks, self._fetched.size)

    def _want(self, links: Sequence[Cid]) -> None:
        pending = list(links)
        while pending:
            cid = pending.pop()
            if cid.inline is not None:
                try:
                    pending.extend(links_of(cid.codec, cid.inline))
                except DagError as error:
                    raise SourceMalformed(f"Block {cid} is malformed.") from error
            elif cid not in self._seen and cid not in self._wanted:
                self._wanted[cid] = None
        if len(self._wanted) > MAX_WANTED_BLOCKS:
            raise SourceMalformed("The content has too many links for its number of blocks.")


class _Arriving:
    """A gateway's CAR on its way to the node. `failure` is the error that ended it early: raised
    from `blocks`, it would make the node drop the blocks that it was sent before."""

    def __init__(
        self, chunks: AsyncIterator[bytes], root: Cid, missing: _Missing, outbound: Outbound
    ) -> None:
        self.failure: Exception | None = None
        self._reader = CarReader(chunks)
        self._root = root
        self._missing = missing
        self._patience = outbound.limits.block_timeout
        self._repeated = 0

    async def blocks(self) -> AsyncGenerator[tuple[Cid, bytes]]:
        """Yield the wanted blocks, until the DAG is complete or `failure` is set."""
        async with aclosing(self._reader.blocks()) as blocks:
            while self._missing.wanted is not None:
                try:
                    found = await self._next(blocks)
                    if found is None:
                        return
                    self._missing.take(*found, fetched=True)
                except WrongBlockError as error:
                    self.failure = SourceMalformed(f"The gateway sent a wrong block: {error}.")
                except CarError as error:
                    # Cut off, or text after the last block: missing blocks are requested again.
                    self.failure = _BrokenOffError(f"The gateway's CAR ends prematurely: {error}.")
                except TimeoutError:
                    self.failure = _BrokenOffError("The gateway is too slow.")
                except SourceUnavailable as error:
                    self.failure = _BrokenOffError(error.details)
                except (SourceError, PayloadTooLarge) as error:
                    self.failure = error
                else:
                    yield found
                    continue
                return

    async def _next(self, blocks: AsyncIterator[tuple[Cid, bytes]]) -> tuple[Cid, bytes] | None:
        async with asyncio.timeout(self._patience):
            while (found := await anext(blocks, None)) is not None:
                cid, block = found
                if list(self._reader.roots) != [self._root]:
                    raise SourceMalformed("The gateway sent a CAR with a different root.")
                if self._missing.wants(cid):
                    return found
                if not self._missing.has(cid):
                    raise SourceMalformed(f"The gateway sent block {cid}, which was not requested.")
                self._repeated += len(block)
                if self._repeated > MAX_REPEATED_BYTES + self._missing.bytes:
                    raise SourceMalformed("The gateway keeps sending the same blocks.")
        return None


def _media_type(answer: OutboundResponse) -> str:
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_roots(roots: Sequence[Cid], expected: Sequence[str] | None) -> None:
    if not roots:
        raise BadCar("This CAR has no root.")
    if expected is not None and {str(root) for root in roots} != set(expected):
        raise BadCar("This CAR has different roots than expected.")


def _check_readable(cid: Cid, block: bytes) -> None:
    """Raise `DagError` unless it is a block of its codec; codecs that only the node knows are not
    checked."""
    try:
        links_of(cid.codec, block)
    except TooComplexError:
        raise
    except UnknownCodecError:
        return


async def _which(node: IpfsNode, root: Cid) -> str:
    """Return the first missing block, as text for a person; empty if it can't be found."""
    missing = _Missing(root, None, None)
    try:
        while (wanted := missing.wanted) is not None:
            if (block := await node.block(str(wanted))) is None:
                return f": the first missing block is {wanted}"
            missing.take(wanted, block, fetched=False)
    except SourceError:
        return ""
    return ""
