"""Kubo's data plane by aiohttp: uploads stream into RPC `add`, downloads come from the node's
gateway.

Kubo reports failures in mid-stream in an HTTP trailer after a 200, which no Python client shows:
nothing here is believed before its CID, its size and its pin have been verified.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from on_api.core.errors import (
    BadRequest,
    InsufficientStorage,
    NodeError,
    NodeRefused,
    NodeTimeout,
    NodeTruncated,
    NodeUnavailable,
)
from on_api.core.ipfs.cid import ADD_OPTIONS, CHUNK_BYTES, normalise, raw_leaf_cid
from on_api.core.ipfs.client import Added
from on_api.core.settings import Settings

logger = logging.getLogger(__name__)

READ_BUFFER = 1024 * 1024
JOINED_BYTES = 64 * 1024
"""A body that is not over this goes out in one piece."""
MAX_ANSWER_BYTES = 64 * 1024
"""Of the answer to one `add`: a line or two."""
NOT_PINNED = "is not pinned"
"""How Kubo says that there is no pin: as an error."""
_NO_SPACE = ("no space left on device", "StorageMax", "disk quota exceeded")


@dataclass
class _Sent:
    """What is known of the bytes sent: how many, and the hash of a first block."""

    size: int = 0
    head: Any = field(default_factory=hashlib.sha256)
    failure: BaseException | None = None

    def take(self, chunk: bytes) -> None:
        if self.size < CHUNK_BYTES:
            self.head.update(chunk[: CHUNK_BYTES - self.size])
        self.size += len(chunk)


class KuboData:
    """Streams to and from one Kubo."""

    def __init__(self, settings: Settings, authorization: str | None) -> None:
        self._rpc = settings.rpc_url
        self._gateway = settings.gateway_url
        self._limits = settings.ipfs
        self._headers = {} if authorization is None else {"Authorization": authorization}
        self._session: aiohttp.ClientSession | None = None

    async def add(self, source: AsyncIterator[bytes], *, pin_name: str) -> Added:
        """See `IpfsNode.add`."""
        sent = _Sent()
        answer = await self._send(source, pin_name, sent)
        cid, dag_size = _root(answer)
        await self._verify(cid, sent)
        return Added(cid=cid, size=sent.size, dag_size=dag_size)

    @asynccontextmanager
    async def read(
        self, cid: str, *, offset: int, length: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `IpfsNode.read`."""
        if length == 0:
            yield _nothing()
            return
        last = offset + length - 1
        try:
            async with asyncio.timeout(self._limits.stall_timeout):
                response = await self._open_session().get(
                    f"{self._gateway}/ipfs/{cid}",
                    headers={"Range": f"bytes={offset}-{last}", "Accept-Encoding": "identity"},
                    allow_redirects=False,
                )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _translate(error) from error
        try:
            if response.status != 206 or response.content_length != length:
                raise _unexpected(response.status, await _said(response))
            if not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-{last}/"):
                raise NodeError("The IPFS node answered another range.")
            yield self._chunks(response, length)
        finally:
            # Not `release`: what is left of a body that nobody wants is not worth reading.
            response.close()

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _chunks(self, response: aiohttp.ClientResponse, length: int) -> AsyncIterator[bytes]:
        left = length
        while left > 0:
            try:
                # Only this wait is the node's: a slow reader of ours doesn't run this clock.
                async with asyncio.timeout(self._limits.stall_timeout):
                    chunk = await response.content.readany()
            except (aiohttp.ClientError, TimeoutError) as error:
                raise _translate(error) from error
            if not chunk:
                raise NodeTruncated
            left -= len(chunk)
            if left < 0:
                raise NodeError("The IPFS node sent more than was asked for.")
            yield chunk

    async def _send(self, source: AsyncIterator[bytes], pin_name: str, sent: _Sent) -> bytes:
        boundary = secrets.token_hex(16)
        # A fault may come as an error of the connection while Kubo has already said why: read that
        # first.
        try:
            async with asyncio.timeout(self._limits.stall_timeout) as clock:
                async with self._open_session().post(
                    f"{self._rpc}/api/v0/add",
                    params={
                        **ADD_OPTIONS,
                        "pin": "true",
                        "pin-name": pin_name,
                        "progress": "false",
                    },
                    headers={
                        **self._headers,
                        "Content-Type": f"multipart/form-data; boundary={boundary}",
                    },
                    data=self._framed(source, boundary, sent, clock),
                ) as response:
                    if response.status != 200:
                        raise _unexpected(response.status, await _said(response))
                    answer = await response.content.read(MAX_ANSWER_BYTES)
                    while chunk := await response.content.read(MAX_ANSWER_BYTES):
                        answer += chunk
                        if len(answer) > MAX_ANSWER_BYTES:
                            raise NodeError("The IPFS node's answer was too long.")
                    return answer
        except (aiohttp.ClientError, TimeoutError) as error:
            if sent.failure is not None:
                raise sent.failure from None
            raise _translate(error) from error

    async def _framed(
        self, source: AsyncIterator[bytes], boundary: str, sent: _Sent, clock: asyncio.Timeout
    ) -> AsyncIterator[bytes]:
        """The multipart body. The clock runs while Kubo is what we wait for, not while the client
        is."""
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
                # Raised on without the closing boundary: Kubo sees a broken body and adds nothing.
                sent.failure = error
                raise
            if chunk is None:
                break
            sent.take(chunk)
            clock.reschedule(loop.time() + self._limits.stall_timeout)
            if len(waiting) + len(chunk) <= JOINED_BYTES:
                waiting += chunk
                continue
            if waiting:
                yield waiting
                waiting = b""
            yield chunk
        clock.reschedule(loop.time() + self._limits.finish_timeout)
        yield waiting + f"\r\n--{boundary}--\r\n".encode()

    async def _verify(self, cid: str, sent: _Sent) -> None:
        """Raise unless this root is what was sent, complete, and pinned recursively."""
        if sent.size <= CHUNK_BYTES:
            # One raw block: its CID proves every byte.
            if cid != raw_leaf_cid(sent.head.digest()):
                raise NodeError("The IPFS node stored something else than was sent.")
            pinned = await self._is_pinned(cid)
        else:
            size, pinned = await asyncio.gather(self._file_size(cid), self._is_pinned(cid))
            if size != sent.size:
                raise NodeTruncated("The IPFS node stored less than was sent.")
        if not pinned:
            raise NodeError("The IPFS node stored the file but did not pin it.")

    async def _file_size(self, cid: str) -> int:
        """The size that the UnixFS root states, in bytes."""
        answer = await self._ask("files/stat", arg=f"/ipfs/{cid}")
        try:
            return int(answer["Size"])
        except (KeyError, TypeError, ValueError) as error:
            raise NodeError("The IPFS node's answer was not understood.") from error

    async def _is_pinned(self, cid: str) -> bool:
        """Whether there is a recursive pin on exactly this CID.

        Asked after each upload, and so not through ipfshttpclient, where the same question takes
        ten times the processor's time.
        """
        answer = await self._ask("pin/ls", arg=cid, type="recursive")
        return cid in (answer.get("Keys") or ())

    async def _ask(self, question: str, **params: str) -> dict[str, Any]:
        """The JSON object that answers a short question; an empty one for "is not pinned"."""
        try:
            async with (
                asyncio.timeout(self._limits.control_timeout),
                self._open_session().post(
                    f"{self._rpc}/api/v0/{question}", params=params, headers=self._headers
                ) as response,
            ):
                if response.status != 200:
                    said = await _said(response)
                    if NOT_PINNED in said:
                        return {}
                    raise _unexpected(response.status, said)
                return dict(await response.json())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _translate(error) from error
        except (TypeError, ValueError) as error:
            raise NodeError("The IPFS node's answer was not understood.") from error

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._limits.connect_timeout
                ),
                read_bufsize=READ_BUFFER,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                headers={"User-Agent": "on-api"},
            )
        return self._session


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield


def _root(answer: bytes) -> tuple[str, int]:
    """CID and cumulative DAG size from the last NDJSON object of an `add`."""
    lines = answer.strip().splitlines()
    if not lines or not answer.endswith(b"\n"):
        raise NodeTruncated
    try:
        last = json.loads(lines[-1])
        if last.get("Type") == "error" or "Hash" not in last:
            raise _failure(str(last.get("Message", "")))
        return normalise(last["Hash"]), int(last["Size"])
    except (ValueError, KeyError, TypeError, AttributeError, BadRequest) as error:
        raise NodeTruncated("The IPFS node's answer was not understood.") from error


async def _said(response: aiohttp.ClientResponse) -> str:
    """The beginning of a body that is no answer."""
    try:
        body = await response.content.read(4096)
    except aiohttp.ClientError:
        body = b""
    return body.decode(errors="replace").strip()


def _unexpected(status: int, message: str) -> NodeError | InsufficientStorage:
    """The error for a status that was not expected; what Kubo said goes to the log."""
    logger.warning("Kubo answered %s: %s", status, message[:500])
    if status in {401, 403}:
        return NodeRefused()
    if status in {504, 408}:
        return NodeTimeout()
    return _failure(message)


def _failure(message: str) -> NodeError | InsufficientStorage:
    if any(words.lower() in message.lower() for words in _NO_SPACE):
        return InsufficientStorage()
    return NodeError()


def _translate(error: BaseException) -> NodeError:
    if isinstance(error, TimeoutError | aiohttp.ServerTimeoutError):
        return NodeTimeout()
    if isinstance(error, aiohttp.ClientConnectorError):
        return NodeUnavailable()
    return NodeTruncated()
