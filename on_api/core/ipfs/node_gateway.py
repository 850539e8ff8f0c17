"""The node's own gateway, asked over HTTP and taken at its word: status, headers and bytes as they
come.

Knows nothing of who asks or what may be had. Never passes on more of a request than it is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import aiohttp
from yarl import URL

from on_api.core.errors import NodeError, NodeTruncated
from on_api.core.ipfs.kubo_http import open_session, translate
from on_api.core.settings import Settings

Headers = list[tuple[bytes, bytes]]

# Of one connection only (RFC 9110, 7.6.1), or said by the server that answers.
_NOT_PASSED_ON = frozenset({
    b"connection", b"date", b"keep-alive", b"proxy-connection", b"server", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
})  # fmt: skip
_UNASKED = ("Accept", "Accept-Encoding", "User-Agent")
"""What aiohttp would add."""


@dataclass(slots=True)
class NodeAnswer:
    """An answer whose body is still to come. Whoever has it closes it."""

    status: int
    headers: Headers
    """Names in lower case; one that came repeatedly is one, its values joined by commas."""
    length: int | None
    """Bytes of the body, where that was announced."""
    _response: aiohttp.ClientResponse
    _stall: float

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises a `NodeError` rather than end too soon."""
        content = self._response.content
        left = self.length
        while True:
            try:
                # Only this wait is the node's: a slow reader of ours doesn't run this clock.
                async with asyncio.timeout(self._stall):
                    chunk = await content.readany()
            except (aiohttp.ClientError, TimeoutError) as error:
                raise translate(error) from error
            if not chunk:
                break
            if left is not None:
                left -= len(chunk)
            yield chunk
        if left:
            raise NodeTruncated

    def close(self) -> None:
        """Let go of it; a body that is not at its end is not waited for."""
        self._response.close()


class NodeGateway:
    """Bound to the event loop of its first call."""

    def __init__(self, settings: Settings) -> None:
        self._origin = settings.gateway_url
        self._limits = settings.ipfs
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self, method: str, path: str, query: str, headers: Sequence[tuple[str, str]]
    ) -> NodeAnswer:
        """Ask for a path (percent-encoded) with a query (as it is, without `?`).

        Redirects are not followed. Raises a `NodeError` in bounded time.
        """
        url = f"{self._origin}{path}?{query}" if query else f"{self._origin}{path}"
        try:
            async with asyncio.timeout(self._limits.stall_timeout):
                response = await self._open_session().request(
                    method, URL(url, encoded=True), headers=headers, allow_redirects=False
                )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise translate(error) from error
        except ValueError as error:
            raise NodeError("The IPFS node's answer was not understood.") from error
        kept = _passed_on(response.raw_headers)
        bodiless = method == "HEAD" or response.status in {204, 304}
        return NodeAnswer(
            response.status,
            kept,
            0 if bodiless else response.content_length,
            response,
            self._limits.stall_timeout,
        )

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = open_session(self._limits, skip_auto_headers=_UNASKED)
        return self._session


def _passed_on(raw: Sequence[tuple[bytes, bytes]]) -> Headers:
    kept: dict[bytes, bytes] = {}
    for name, value in raw:
        name = name.lower()
        if name not in _NOT_PASSED_ON:
            kept[name] = kept[name] + b", " + value if name in kept else value
    return list(kept.items())
