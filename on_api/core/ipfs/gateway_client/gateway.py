"""The node's own gateway, asked over HTTP and taken at its word: status, headers and bytes as they
come.

Knows nothing of who asks or what may be had. Never passes on more of a request than it is given.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from on_api.core.errors import NodeError
from on_api.core.ipfs.daemon.repo import own_gateway_socket
from on_api.core.ipfs.gateway_client.client import NodeHttp
from on_api.core.ipfs.gateway_client.connection import NodeAnswer, Stale, Told
from on_api.core.ipfs.gateway_client.heads import Headers
from on_api.core.settings import Settings

# Of one connection only (RFC 9110, 7.6.1), or said by the server that answers.
_NOT_PASSED_ON = frozenset({
    b"connection", b"date", b"keep-alive", b"proxy-connection", b"server", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
})  # fmt: skip


MOST_BY_SOCKET = 1024 * 1024
"""Bytes of a body that comes as fast by the node's socket. That holds 200 KiB at a time, a port
what the kernel deems right: a gigabyte takes a fifth longer by the socket, 8 KiB a tenth less."""


def gateway_http(settings: Settings, socket: Path | None = None) -> NodeHttp:
    """Connections to the node's gateway, which are asked as an address, whatever its name.

    By a name Kubo decides what kind of gateway it is: `localhost` is redirected to a subdomain for
    each CID, so are all of `Gateway.PublicGateways` that use them, and others are looked up in DNS.
    What speaks TLS is no Kubo but a proxy, which needs its name.
    """
    parts = urlsplit(settings.gateway_url)
    host = None
    if parts.scheme == "http" and not _is_address(parts.hostname or ""):
        host = "127.0.0.1" if parts.port is None else f"127.0.0.1:{parts.port}"
    return NodeHttp(settings.gateway_url, settings.ipfs, socket, host)


class NodeGateway:
    """Bound to the event loop of its first call."""

    def __init__(self, settings: Settings) -> None:
        self._http = self._by_socket = gateway_http(settings)
        if (socket := own_gateway_socket(settings)) is not None:
            self._by_socket = gateway_http(settings, socket)

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

    def get_at_once(
        self, path: str, query: str, headers: Sequence[tuple[str, str]], told: Told
    ) -> bool:
        """The same by GET, where that takes no connection to be made first: see
        `NodeHttp.ask_at_once`. What is large is better asked for once more."""
        has_socket = self._by_socket is not self._http

        def told_by_node(said: NodeAnswer | NodeError | Stale) -> None:
            if isinstance(said, NodeAnswer):
                if has_socket and (said.length or 0) > MOST_BY_SOCKET:
                    said.close()
                    said = Stale()
                else:
                    said.headers = _passed_on(said.headers)
            told(said)

        target = f"{path}?{query}" if query else path
        if self._by_socket.ask_at_once(target, headers, told_by_node):
            return True
        if has_socket:  # else the usual way leaves a connection
            self._by_socket.prepare()
        return False

    async def close(self) -> None:
        """Close every connection."""
        await self._http.close()
        await self._by_socket.close()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _passed_on(raw: Headers) -> Headers:
    kept = dict(raw)
    if len(kept) < len(raw):
        kept = {}
        for name, value in raw:
            kept[name] = kept[name] + b", " + value if name in kept else value
    for name in _NOT_PASSED_ON & kept.keys():
        del kept[name]
    return list(kept.items())
