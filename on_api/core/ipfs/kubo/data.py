"""Kubo's data plane: uploads stream into RPC `add`, blocks into `dag/import`, downloads come from
the node's gateway.

Kubo reports failures in mid-stream in an HTTP trailer after a 200, which no Python client shows: no
answer here is believed before its CID, its size and its pin have been verified.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import StreamWriter

from on_api.core.errors import BadRequest, NodeError, NodeTruncated
from on_api.core.ipfs.formats.bundle import Block, Bundle
from on_api.core.ipfs.formats.car import car_header, car_section
from on_api.core.ipfs.formats.cid import ADD_OPTIONS, CHUNK_BYTES, Cid, normalise, raw_leaf_cid
from on_api.core.ipfs.kubo.rpc import KuboHttp, failure, translate, unexpected, unexpected_content
from on_api.core.ipfs.port import Added, DagStat, NodePin, StoredUnpinned
from on_api.core.setting_groups import IpfsSettings
from on_api.core.streams.blocks import Bytes

JOINED_BYTES = 64 * 1024
"""Bytes up to which a request body is sent in one piece."""
MAX_ANSWER_BYTES = 64 * 1024
"""Upper bound for the answer to one `add`, which has a line or two."""


_IMPORT_OPTIONS = {
    "pin-roots": "false",
    "silent": "true",
    "stats": "true",
    "allow-big-block": "false",
    "fast-provide-root": "false",
}


@dataclass
class _Sent:
    """Facts about the bytes sent: their number, and the hash of a first block."""

    size: int = 0
    head: Any = field(default_factory=hashlib.sha256)
    failure: BaseException | None = None

    def take(self, chunk: Bytes) -> None:
        if self.size < CHUNK_BYTES:
            self.head.update(chunk[: CHUNK_BYTES - self.size])
        self.size += len(chunk)


class _Body(aiohttp.payload.Payload):
    """A request's body that writes each large piece to the socket as it is, between its chunk's
    frame.

    On Python before 3.12.9 aiohttp joins the three, which copies all that is uploaded.
    """

    def __init__(self, pieces: AsyncIterator[Bytes]) -> None:
        super().__init__(pieces)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """See aiohttp. Its writer is chunked, as no size is known."""
        stream = cast(StreamWriter, writer)
        if stream.transport is not None:  # so that `drain` returns only when the piece is sent
            stream.transport.set_write_buffer_limits(0)
        async for piece in self._value:
            if len(piece) <= JOINED_BYTES:
                await stream.write(piece)
                del piece  # hold none while waiting for the next one
                continue
            stream.send_headers()
            if stream.transport is None or stream.transport.is_closing():
                raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
            stream.transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))
            await stream.drain()
            del piece

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """See aiohttp."""
        raise TypeError("the stream is not valid text")


class KuboData:
    """Streams to and from one Kubo. `pin_status` looks a pin up, as `IpfsNode.pin_status` does."""

    def __init__(
        self,
        http: KuboHttp,
        limits: IpfsSettings,
        pin_status: Callable[[str], Awaitable[NodePin | None]],
    ) -> None:
        self._http = http
        self._limits = limits
        self._pin_status = pin_status

    async def add(self, source: AsyncIterator[Bytes], *, pin_name: str) -> Added:
        """See `IpfsNode.add`."""
        sent = _Sent()
        params = {**ADD_OPTIONS, "pin": "true", "pin-name": pin_name, "progress": "false"}
        cid, dag_size = _root(await self._send("add", params, source, sent))
        added = Added(cid=cid, size=sent.size, dag_size=dag_size)
        if not await self._is_pinned(cid, sent):
            raise StoredUnpinned(added)
        return added

    async def import_blocks(self, blocks: AsyncIterator[tuple[Cid, bytes]]) -> DagStat:
        """See `IpfsNode.import_blocks`."""
        first = await anext(blocks, None)
        if first is None:
            return DagStat(0, 0)
        car = _Car(first, blocks)
        answer = await self._send("dag/import", _IMPORT_OPTIONS, car.pieces(), _Sent())
        # The only proof of success: a failure in mid-stream is reported in a trailer.
        if _imported(answer) != car.blocks:
            raise NodeTruncated("The IPFS node stored fewer blocks than were sent.")
        return DagStat(car.bytes, car.blocks)

    async def store_bundle(self, bundle: Bundle, *, pin_name: str) -> None:
        """See `IpfsNode.store_bundle`."""
        await self.import_blocks(_all_of(bundle))
        # All its blocks are there, so the walk stays on the node's own disk. If one were gone
        # again, Kubo would, without `offline`, request it from the network for as long as we wait.
        query = {"arg": str(bundle.cid), "name": pin_name, "offline": "true"}
        pinned = await self._http.call("pin/add", query, self._limits.stall_timeout)
        if pinned.get("Pins") != [str(bundle.cid)]:
            raise NodeTruncated("The IPFS node did not pin these files.")

    @asynccontextmanager
    async def read(
        self, cid: str, *, offset: int, length: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `IpfsNode.read`."""
        if length == 0:
            yield _nothing()
            return
        last = offset + length - 1
        answer = await self._http.get_content(cid, [("Range", f"bytes={offset}-{last}")])
        try:
            if answer.status != 206 or answer.length != length:
                raise await unexpected_content(answer)
            content_range = dict(answer.headers).get(b"content-range", b"")
            if not content_range.startswith(b"bytes %d-%d/" % (offset, last)):
                raise NodeError("The IPFS node returned a different range than requested.")
            yield answer.chunks()
        finally:
            answer.close()

    async def _send(
        self, command: str, params: Mapping[str, str], source: AsyncIterator[Bytes], sent: _Sent
    ) -> bytes:
        boundary = secrets.token_hex(16)
        headers = {
            **await self._http.identity.headers(),
            "Content-Type": f"multipart/form-data; boundary={boundary}",
        }
        # A failure may arrive as an error of the connection although Kubo has already answered why:
        # read that answer first.
        try:
            async with asyncio.timeout(self._limits.stall_timeout) as clock:
                async with self._http.session().post(
                    f"{self._http.rpc_url}/api/v0/{command}",
                    params=params,
                    headers=headers,
                    data=_Body(self._framed(source, boundary, sent, clock)),
                    allow_redirects=False,
                ) as response:
                    if response.status != 200:
                        raise await unexpected(response)
                    answer = await response.content.read(MAX_ANSWER_BYTES)
                    while chunk := await response.content.read(MAX_ANSWER_BYTES):
                        answer += chunk
                        if len(answer) > MAX_ANSWER_BYTES:
                            raise NodeError("The IPFS node's response was too long.")
                    return answer
        except (aiohttp.ClientError, TimeoutError) as error:
            if sent.failure is not None:
                raise sent.failure from None
            self._http.identity.distrust()
            raise translate(error) from error

    async def _framed(
        self, source: AsyncIterator[Bytes], boundary: str, sent: _Sent, clock: asyncio.Timeout
    ) -> AsyncIterator[Bytes]:
        """Yield the multipart body. The timeout runs while we wait for Kubo, not while we wait for
        the client."""
        loop = asyncio.get_running_loop()
        chunks = aiter(source)
        waiting = (
            f"--{boundary}\r\n"
            'Content-Disposition: form-data; name="file"; filename="file"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        while True:
            clock.reschedule(None)
            try:
                chunk = await anext(chunks, None)
            except BaseException as error:
                # Re-raised without the closing boundary: Kubo sees a broken body and adds nothing.
                sent.failure = error
                raise
            if chunk is None:
                break
            sent.take(chunk)
            clock.reschedule(loop.time() + self._limits.stall_timeout)
            if len(waiting) + len(chunk) <= JOINED_BYTES:
                waiting += chunk
                del chunk  # hold none while waiting for the next one
                continue
            if waiting:
                yield waiting
                waiting = b""
            yield chunk
            del chunk
        clock.reschedule(loop.time() + self._limits.finish_timeout)
        yield waiting + f"\r\n--{boundary}--\r\n".encode()

    async def _is_pinned(self, cid: str, sent: _Sent) -> bool:
        """Return whether this root is pinned recursively. Raises a `NodeError` unless it is exactly
        what was sent."""
        if sent.size <= CHUNK_BYTES:
            # One raw block: its CID proves every byte.
            if cid != raw_leaf_cid(sent.head.digest()):
                raise NodeError("The IPFS node stored different content than was sent.")
            pin = await self._pin_status(cid)
        else:
            size, pin = await asyncio.gather(self._file_size(cid), self._pin_status(cid))
            if size != sent.size:
                raise NodeTruncated("The IPFS node stored less than was sent.")
        return pin is not None

    async def _file_size(self, cid: str) -> int:
        """Return the size that the UnixFS root states, in bytes."""
        answer = await self._http.call("files/stat", {"arg": f"/ipfs/{cid}"})
        try:
            return int(answer["Size"])
        except (KeyError, TypeError, ValueError) as error:
            raise NodeError("The IPFS node's response could not be parsed.") from error


class _Car:
    """Blocks on their way into a CAR, counted."""

    def __init__(self, first: tuple[Cid, bytes], others: AsyncIterator[tuple[Cid, bytes]]) -> None:
        self.blocks = 0
        self.bytes = 0
        self._first = first
        self._others = others

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the CAR, small blocks joined. Kubo requires a root but is told to pin none: any
        will do."""
        waiting = car_header(self._first[0]) + self._section(*self._first)
        async for cid, block in self._others:
            if len(waiting) > JOINED_BYTES:
                yield waiting
                waiting = b""
            waiting += self._section(cid, block)
        yield waiting

    def _section(self, cid: Cid, block: bytes) -> bytes:
        self.blocks += 1
        self.bytes += len(block)
        return car_section(cid, block)


def _imported(answer: bytes) -> int:
    """Return the number of blocks that `dag/import` reports as stored."""
    try:
        return int(json.loads(answer)["Stats"]["BlockCount"])
    except (ValueError, KeyError, TypeError) as error:
        raise NodeTruncated from error


async def _all_of(bundle: Bundle) -> AsyncIterator[Block]:
    for block in bundle.blocks:
        yield block
    yield bundle.cid, bundle.node


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield


def _root(answer: bytes) -> tuple[str, int]:
    """Return CID and cumulative DAG size (bytes) from the last NDJSON object of an `add`."""
    lines = answer.strip().splitlines()
    if not lines or not answer.endswith(b"\n"):
        raise NodeTruncated
    try:
        last = json.loads(lines[-1])
        if last.get("Type") == "error" or "Hash" not in last:
            raise failure(str(last.get("Message", "")))
        return normalise(last["Hash"]), int(last["Size"])
    except (ValueError, KeyError, TypeError, AttributeError, BadRequest) as error:
        raise NodeTruncated("The IPFS node's response could not be parsed.") from error
