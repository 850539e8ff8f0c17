"""The node's own gateway, asked over HTTP and taken at its word: status, headers and bytes as they
come.

Knows nothing of who asks or what may be had. Never passes on more of a request than it is given.
"""

from __future__ import annotations

from collections.abc import Sequence

from on_api.core.ipfs.node_connection import Headers, NodeAnswer
from on_api.core.ipfs.node_http import NodeHttp
from on_api.core.settings import Settings

# Of one connection only (RFC 9110, 7.6.1), or said by the server that answers.
_NOT_PASSED_ON = frozenset({
    b"connection", b"date", b"keep-alive", b"proxy-connection", b"server", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
})  # fmt: skip


class NodeGateway:
    """Bound to the event loop of its first call."""

    def __init__(self, settings: Settings) -> None:
        self._http = NodeHttp(settings.gateway_url, settings.ipfs)

    async def ask(
        self, method: str, path: str, query: str, headers: Sequence[tuple[str, str]]
    ) -> NodeAnswer:
        """Ask for a path (percent-encoded) with a query (as it is, without `?`). A header that
        comes repeatedly in the answer is one, its values joined by commas.

        Raises a `NodeError` in bounded time.
        """
        answer = await self._http.ask(method, f"{path}?{query}" if query else path, headers)
        answer.headers = _passed_on(answer.headers)
        return answer

    async def close(self) -> None:
        """Close every connection."""
        await self._http.close()


def _passed_on(raw: Headers) -> Headers:
    kept: dict[bytes, bytes] = {}
    for name, value in raw:
        if name not in _NOT_PASSED_ON:
            kept[name] = kept[name] + b", " + value if name in kept else value
    return list(kept.items())
