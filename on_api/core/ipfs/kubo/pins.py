"""Kubo's storage: pins, walks over DAGs, garbage collection, and the peers to fetch from.

These answers are long (a line each half second, for hours) and are read by aiohttp as they come.
Kubo stops its work when the connection is closed: cancelling the caller cancels it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from on_api.core.errors import BlocksMissing, NodeError, NodeTimeout, NodeTruncated
from on_api.core.ipfs.formats.car import MAX_BLOCK_BYTES
from on_api.core.ipfs.formats.cid import RAW, Cid
from on_api.core.ipfs.kubo.rpc import KuboHttp, NotPinned, unexpected_content
from on_api.core.ipfs.port import DagStat, NodePin
from on_api.core.setting_groups import IpfsSettings

CAR_TYPE = "application/vnd.ipld.car; version=1; order=dfs; dups=n"
BLOCK_TYPE = "application/vnd.ipld.raw"
DIAL_SECONDS = 15.0


class KuboPins:
    """The storage half of a Kubo node; `KuboNode` is built on it."""

    def __init__(self, http: KuboHttp, limits: IpfsSettings) -> None:
        self._http = http
        self._limits = limits

    async def pin_status(self, cid: str) -> NodePin | None:
        """See `IpfsNode.pin_status`. Asks for exactly this CID: an unfiltered list costs the whole
        pin set. Called after each upload, and so not through ipfshttpclient, which takes ten times
        the CPU time."""
        query = {"arg": cid, "type": "recursive", "names": "true"}
        try:
            found = (await self._http.ask("pin/ls", query))["Keys"]
            pin = found.get(cid)
            return None if pin is None else NodePin(cid, str(pin.get("Name", "")))
        except NotPinned:
            return None
        except (AttributeError, KeyError) as error:
            raise NodeError("The IPFS node's response could not be parsed.") from error

    async def pins(self, *, name: str = "") -> AsyncIterator[NodePin]:
        """See `IpfsNode.pins`."""
        query = {"type": "recursive", "stream": "true", "names": "true"}
        if name:
            query["name"] = name
        async with aclosing(
            self._http.lines("pin/ls", query, self._limits.finish_timeout)
        ) as lines:
            async for line in lines:
                if "Cid" not in line:
                    raise NodeError("The IPFS node's response could not be parsed.")
                yield NodePin(str(line["Cid"]), str(line.get("Name", "")))

    async def pin(
        self,
        cid: str,
        *,
        name: str,
        fetch: bool,
        progress: Callable[[DagStat], None] | None = None,
    ) -> DagStat:
        """See `IpfsNode.pin`."""
        if not fetch and Cid.from_text(cid).codec != RAW:
            # `pin/add` is offline for the root only (measured): for a block missing below it, it
            # would ask the network without end.
            await self.dag_stat(cid)
        query = {"arg": cid, "name": name, "progress": "true", "offline": _flag(not fetch)}
        # While it works Kubo writes a line each half second, whether a block came or not.
        last: dict[str, Any] = {}
        stat = DagStat(0, 0)
        loop = asyncio.get_running_loop()
        moved_at = loop.time()
        async with aclosing(
            self._http.lines("pin/add", query, self._limits.stall_timeout)
        ) as lines:
            async for last in lines:
                before = stat
                if last.get("Progress"):
                    stat = DagStat(int(last.get("Bytes", 0)), int(last["Progress"]))
                    if progress is not None:
                        progress(stat)
                if stat != before:
                    moved_at = loop.time()
                elif not fetch and loop.time() - moved_at > self._limits.stall_timeout:
                    # A block has disappeared since; the caller of a fetch has its own timeout.
                    raise NodeTimeout
        # A failure at the end is only reported in a trailer that Python does not show. On success
        # the last line names the pin, once it is on Kubo's disk.
        if not last.get("Pins"):
            raise NodeTruncated("The IPFS node did not pin this content.")
        return stat if stat.size else await self.dag_stat(cid)

    async def pin_all(self, cids: Sequence[str], *, name: str) -> None:
        """See `IpfsNode.pin_all`. Kubo pins them one after the other, each on disk before the next;
        this only saves a request for each."""
        query = [*(("arg", cid) for cid in cids), ("name", name), ("offline", "true")]
        # Without progress it answers only at the end, and reports failures by its status.
        answer = await self._http.call("pin/add", query, self._limits.stall_timeout)
        if answer.get("Pins") != list(cids):
            raise NodeTruncated("The IPFS node did not pin this content.")

    async def dag_stat(self, cid: str, *, fetch: bool = False) -> DagStat:
        """See `IpfsNode.dag_stat`."""
        query = {"arg": cid, "progress": "true", "offline": _flag(not fetch)}
        last: dict[str, Any] = {}
        async with aclosing(
            self._http.lines("dag/stat", query, self._limits.finish_timeout)
        ) as lines:
            async for line in lines:
                last = line
        try:
            # Lines of progress have no such field.
            if "UniqueBlocks" in last:
                return DagStat(int(last["TotalSize"]), int(last["UniqueBlocks"]))
            # Kubo fails to write the summary for an empty block (its ratio would be 0/0), and when
            # a block is missing: either is only reported in the trailer.
            so_far = last["DagStats"][0]
            if so_far["NumBlocks"] == 1 and not so_far.get("Size"):
                return DagStat(0, 1)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise NodeError("The IPFS node's response could not be parsed.") from error
        raise BlocksMissing

    async def dag_stats(self, cids: Sequence[str], *, seconds: float) -> Sequence[DagStat]:
        """See `IpfsNode.dag_stats`."""
        query = [*(("arg", cid) for cid in cids), ("progress", "false"), ("offline", "true")]
        answer = await self._http.call("dag/stat", query, seconds)
        try:
            found = answer["DagStats"]
            if [stat["Cid"] for stat in found] != list(cids):
                raise NodeError("The IPFS node's response could not be parsed.")
            # A size of 0 is left out.
            return [DagStat(int(each.get("Size", 0)), int(each["NumBlocks"])) for each in found]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise NodeError("The IPFS node's response could not be parsed.") from error

    @asynccontextmanager
    async def car(self, cid: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `IpfsNode.car`."""
        answer = await self._http.get_content(cid, [("Accept", CAR_TYPE)], "?format=car")
        try:
            if answer.status == 404:
                raise BlocksMissing
            if answer.status != 200:
                raise await unexpected_content(answer)
            yield answer.chunks()
        finally:
            answer.close()

    async def block(self, cid: str) -> bytes | None:
        """See `IpfsNode.block`."""
        answer = await self._http.get_content(cid, [("Accept", BLOCK_TYPE)], "?format=raw")
        try:
            if answer.status == 404:
                return None
            if answer.status != 200:
                raise await unexpected_content(answer)
            block = bytearray()
            async for chunk in answer.chunks():
                block += chunk
                if len(block) > MAX_BLOCK_BYTES:
                    raise NodeError("The IPFS node sent more data than one block.")
            return bytes(block)
        finally:
            answer.close()

    async def connect(self, address: str) -> None:
        """See `IpfsNode.connect`."""
        await self._http.call("swarm/connect", {"arg": address}, DIAL_SECONDS)

    async def addresses(self) -> list[str]:
        """See `IpfsNode.addresses`."""
        answer = await self._http.call("id", {})
        try:
            suffix = f"/p2p/{answer['ID']}"
            listed = [str(address) for address in answer["Addresses"] or ()]
        except (KeyError, TypeError) as error:
            raise NodeError("The IPFS node's response could not be parsed.") from error
        return [address if address.endswith(suffix) else address + suffix for address in listed]

    async def collect_garbage(self) -> int:
        """See `IpfsNode.collect_garbage`."""
        removed = 0
        query = {"stream-errors": "true"}
        async with aclosing(self._http.lines("repo/gc", query, takes_away=True)) as lines:
            async for line in lines:
                if line.get("Error"):
                    raise NodeError("The IPFS node could not remove every block.")
                removed += "Key" in line
        return removed


def _flag(value: bool) -> str:
    return "true" if value else "false"
