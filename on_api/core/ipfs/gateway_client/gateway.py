"""Client of the node's own gateway: passes on status, headers and bytes as they are.

Knows nothing of the client or of what may be served. Never sends more of a request than it is
given.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from on_api.core.errors import NodeError
from on_api.core.ipfs.daemon.repo import own_gateway_socket
from on_api.core.ipfs.gateway_client.client import NodeHttp
from on_api.core.ipfs.gateway_client.connection import NodeAnswer, OutcomeCallback, Stale
from on_api.core.ipfs.gateway_client.heads import Headers
from on_api.core.settings import Settings
from on_api.core.tracing import Tracing

# Headers of one connection only (RFC 9110, 7.6.1), or set by the server that answers the client.
_NOT_PASSED_ON = frozenset({
    b"connection", b"date", b"keep-alive", b"proxy-connection", b"server", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
})  # fmt: skip


MOST_BYTES_BY_SOCKET = 1024 * 1024
"""Bytes up to which a body comes as fast over the node's Unix socket. Its buffer holds 200 KiB, a
port's what the kernel deems right: a gigabyte takes a fifth longer over the socket, 8 KiB a tenth
less."""


def gateway_http(settings: Settings, socket: Path | None = None) -> NodeHttp:
    """Return a client for the node's gateway that sends an address as Host, even if the URL has a
    name.

    By the name Kubo decides what kind of gateway it is: `localhost` and all of
    `Gateway.PublicGateways` that use subdomains redirect to one for each CID, and others are looked
    up in DNS. An `https` URL leads to a proxy, not to Kubo, and the proxy needs its name.
    """
    parts = urlsplit(settings.gateway_url)
    host = None
    if parts.scheme == "http" and not _is_address(parts.hostname or ""):
        host = "127.0.0.1" if parts.port is None else f"127.0.0.1:{parts.port}"
    return NodeHttp(settings.gateway_url, settings.ipfs, socket, host)


class NodeGateway:
    """The gateway over its port and, for small answers, its Unix socket. Bound to the event loop of
    its first call."""

    def __init__(self, settings: Settings, tracing: Tracing | None = None) -> None:
        self._tracing = tracing
        self._http = self._by_socket = gateway_http(settings)
        if (socket := own_gateway_socket(settings)) is not None:
            self._by_socket = gateway_http(settings, socket)

    async def ask(
        self, method: str, path: str, query: str, headers: Sequence[tuple[str, str]]
    ) -> NodeAnswer:
        """Request a path (percent-encoded) with a query (as it is, without `?`). Headers that are
        repeated in the answer are joined into one by commas.

        Raises a `NodeError` in bounded time.
        """
        target = f"{path}?{query}" if query else path
        if self._tracing is None:
            answer = await self._http.ask(method, target, headers)
        else:
            with self._tracing.call("ipfs gateway", {"rpc.method": "gateway"}):
                answer = await self._http.ask(method, target, headers)
        answer.headers = _passed_on(answer.headers)
        return answer

    def get_at_once(
        self, path: str, query: str, headers: Sequence[tuple[str, str]], callback: OutcomeCallback
    ) -> bool:
        """GET a path if a connection is idle; the callback variant of `ask`, see
        `NodeHttp.ask_at_once`. Over the Unix socket an answer above `MOST_BYTES_BY_SOCKET` bytes is
        reported as `Stale`: request it again with `ask`."""
        has_socket = self._by_socket is not self._http

        def on_outcome(outcome: NodeAnswer | NodeError | Stale) -> None:
            if isinstance(outcome, NodeAnswer):
                if has_socket and (outcome.length or 0) > MOST_BYTES_BY_SOCKET:
                    outcome.close()
                    outcome = Stale()
                else:
                    outcome.headers = _passed_on(outcome.headers)
            callback(outcome)

        target = f"{path}?{query}" if query else path
        if self._by_socket.ask_at_once(target, headers, on_outcome):
            return True
        if has_socket:  # else `ask` leaves a connection
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
