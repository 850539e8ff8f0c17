"""HTTP to one Kubo: its RPC through aiohttp, with short and long answers; its gateway and the most
frequent queries through `gateway_client/client.py`; and the meaning of its failures.

Knows none of Kubo's commands; `data.py` and `pins.py` are built on it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import aiohttp

from on_api.core.errors import (
    BadCar,
    BlocksMissing,
    InsufficientStorage,
    NodeError,
    NodeRefused,
    NodeTimeout,
    NodeTruncated,
    NodeUnavailable,
)
from on_api.core.ipfs.gateway_client.client import NodeHttp
from on_api.core.ipfs.gateway_client.connection import NodeAnswer
from on_api.core.ipfs.gateway_client.gateway import gateway_http
from on_api.core.ipfs.kubo.identity import ExpectedNode, Headers, NodeIdentity
from on_api.core.setting_groups import IpfsSettings
from on_api.core.settings import Settings

logger = logging.getLogger(__name__)

Params = Mapping[str, str] | Sequence[tuple[str, str]]
"""Parameters of an RPC command; a name may be repeated."""

READ_BUFFER_BYTES = 1024 * 1024
MAX_LINE_BYTES = 64 * 1024
MAX_WORDS_BYTES = 4096
"""Upper bound for the text of a failure."""
_NO_SPACE = ("no space left on device", "StorageMax", "disk quota exceeded")
_REFUSED_BLOCK = re.compile(r'import failed at block \\?"(\w{1,128})')
_MISSING = "was not found locally"
NOT_PINNED = ("is not pinned", "not pinned or pinned indirectly")
_EVERYDAY = (_MISSING, "failed to dial", *NOT_PINNED)


class NotPinned(NodeError):
    """Kubo's error for a pin that does not exist."""


def open_session(limits: IpfsSettings) -> aiohttp.ClientSession:
    """Return a session with a node's RPC: any number of connections, bodies not decompressed."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_timeout),
        read_bufsize=READ_BUFFER_BYTES,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        headers={"User-Agent": "on-api"},
    )


class KuboHttp:
    """RPC and gateway of one Kubo. Bound to the event loop of its first call."""

    def __init__(
        self, settings: Settings, authorization: str | None, expected: ExpectedNode | None
    ) -> None:
        self.rpc_url = settings.rpc_url
        self.identity = NodeIdentity(expected, authorization, self._ask_for_id)
        """Proof of who answers; it supplies the headers of each call."""
        self._gateway = gateway_http(settings)
        self._questions = NodeHttp(settings.rpc_url, settings.ipfs)
        self._limits = settings.ipfs
        self._session: aiohttp.ClientSession | None = None

    def session(self) -> aiohttp.ClientSession:
        """Return the one session, created at the first call."""
        if self._session is None:
            self._session = open_session(self._limits)
        return self._session

    async def close(self) -> None:
        """Close every connection."""
        await self.identity.close()
        await self._gateway.close()
        await self._questions.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(
        self, command: str, params: Params, seconds: float | None = None
    ) -> dict[str, Any]:
        """Return the short answer of one RPC command, within `seconds` (by default
        `control_timeout`).

        Raises a `NodeError`; `NodeTimeout` for an answer that comes too late.
        """
        try:
            async with asyncio.timeout(seconds or self._limits.control_timeout):
                # The last object counts: commands that walk add their result at the end.
                answer: dict[str, Any] = {}
                async for line in self.lines(command, params):
                    answer = line
                return answer
        except TimeoutError as error:
            raise NodeTimeout from error

    async def ask(self, command: str, params: Params) -> dict[str, Any]:
        """Return the short answer to a query that changes nothing, within `control_timeout`.

        Through our own client, which takes less than half of aiohttp's time; it may send the query
        twice. Raises as `call` does.
        """
        target = f"/api/v0/{command}?{urlencode(params)}"
        status, body = await self._ask(target, await self.identity.headers())
        if status != 200:
            raise _refusal(status, body)
        return _last_object(body)

    async def _ask_for_id(self, headers: Headers) -> tuple[int, str | None]:
        """See `identity.AskForId`."""
        status, body = await self._ask("/api/v0/id", headers)
        if status != 200:
            return status, None
        try:
            peer_id: object = json.loads(body)["ID"]
        except (ValueError, KeyError, TypeError):
            return status, None
        return status, peer_id if isinstance(peer_id, str) and peer_id else None

    async def _ask(self, target: str, headers: Headers) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(self._limits.control_timeout):
                answer = await self._questions.ask(
                    "POST", target, [*headers.items(), ("Content-Length", "0")]
                )
                try:
                    body = bytearray()
                    async for chunk in answer.chunks():
                        body += chunk
                        if len(body) > MAX_LINE_BYTES:
                            raise NodeTruncated
                finally:
                    answer.close()
        except TimeoutError as error:
            raise NodeTimeout from error
        except (NodeUnavailable, NodeTruncated):
            self.identity.distrust()
            raise
        return answer.status, bytes(body)

    async def lines(
        self,
        command: str,
        params: Params,
        stall: float | None = None,
        *,
        takes_away: bool = False,
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the objects of a long answer as they come.

        Raises the error that Kubo reports, `NodeTimeout` after `stall` seconds without a byte
        (None: the caller has its own timeout), `NodeTruncated` for a cut line. A failure that Kubo
        only reports in its trailer is not seen here: check that the last object is the expected
        one.
        """
        headers = await self.identity.headers(anew=takes_away)
        try:
            async with asyncio.timeout(stall):
                response = await self.session().post(
                    f"{self.rpc_url}/api/v0/{command}",
                    params=params,
                    headers=headers,
                    allow_redirects=False,
                )
            try:
                if response.status != 200:
                    raise await unexpected(response)
                pending = b""
                while True:
                    async with asyncio.timeout(stall):
                        chunk = await response.content.readany()
                    *whole, pending = (pending + chunk).split(b"\n")
                    for line in whole:
                        if line:
                            yield _object(line)
                    if len(pending) > MAX_LINE_BYTES:
                        raise NodeTruncated
                    if not chunk:
                        if pending:
                            yield _last_object(pending)
                        return
            finally:
                # Not `release`: Kubo works until the connection is closed.
                response.close()
        except TimeoutError as error:
            raise NodeTimeout from error
        except aiohttp.ClientError as error:
            self.identity.distrust()
            raise translate(error) from error

    async def get_content(
        self, path: str, headers: Sequence[tuple[str, str]], query: str = ""
    ) -> NodeAnswer:
        """Return the gateway's answer for `/ipfs/<path>`, its body still to come; the caller closes
        it. Raises a `NodeError` in bounded time."""
        return await self._gateway.ask("GET", f"/ipfs/{path}{query}", headers)


def _last_object(rest: bytes) -> dict[str, Any]:
    """Parse what follows the last newline. Raises `NodeTruncated` if it is only a part of an
    object."""
    try:
        json.loads(rest)
    except ValueError as error:
        raise NodeTruncated from error
    return _object(rest)


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise NodeError("The IPFS node's response could not be parsed.") from error
    if not isinstance(value, dict):
        raise NodeError("The IPFS node's response could not be parsed.")
    if value.get("Type") == "error":
        raise failure(str(value.get("Message", "")))
    return value


async def unexpected(
    response: aiohttp.ClientResponse,
) -> NodeError | InsufficientStorage | BadCar:
    """Return the error for an unexpected status; Kubo's text is logged."""
    try:
        body = await response.content.read(MAX_WORDS_BYTES)
    except aiohttp.ClientError:
        body = b""
    return _refusal(response.status, body)


async def unexpected_content(answer: NodeAnswer) -> NodeError | InsufficientStorage | BadCar:
    """Return the error for an unexpected status of the gateway; see `unexpected`."""
    try:
        body = await anext(answer.chunks(), b"")
    except NodeError:
        body = b""
    return _refusal(answer.status, body)


def _refusal(status: int, body: bytes) -> NodeError | InsufficientStorage | BadCar:
    message = body[:MAX_WORDS_BYTES].decode(errors="replace").strip()
    # Ordinary negative answers to queries.
    level = logging.DEBUG if any(words in message for words in _EVERYDAY) else logging.WARNING
    logger.log(level, "Kubo responded with status %s: %s", status, message[:500])
    if status in {401, 403}:
        return NodeRefused()
    if status in {504, 408}:
        return NodeTimeout()
    if 300 <= status < 400:
        return NodeError(
            "The IPFS node responded with a redirect, which on-api does not follow (HTTP"
            f" {status})."
        )
    return failure(message)


def failure(message: str) -> NodeError | InsufficientStorage | BadCar:
    """Return the error for Kubo's error text."""
    if any(words.lower() in message.lower() for words in _NO_SPACE):
        return InsufficientStorage()
    if (refused := _REFUSED_BLOCK.search(message)) is not None:
        return BadCar(f"The IPFS node can't decode block {refused[1]}.")
    if _MISSING in message:
        return BlocksMissing()
    if any(words in message for words in NOT_PINNED):
        return NotPinned()
    return NodeError()


def translate(error: BaseException) -> NodeError:
    """Return the error for a failure of the connection."""
    if isinstance(error, TimeoutError | aiohttp.ServerTimeoutError):
        return NodeTimeout()
    if isinstance(error, aiohttp.ClientConnectorError):
        return NodeUnavailable()
    return NodeTruncated()
