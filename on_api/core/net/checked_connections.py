"""Connections to exactly the address that was checked.

A URL comes from a user, so the owner of its host name decides where it leads, and may decide anew
at each lookup. So the connection itself is checked: the name is looked up once, each address is
judged, and the connection is made to that address; TLS still requires the name's certificate.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from functools import lru_cache

import httpcore
import httpx

from on_api.core.errors import AddressRefused
from on_api.core.net.addresses import LookUp, is_public
from on_api.core.setting_groups import ImportsSettings

MAX_ADDRESSES = 4
"""Number of a name's addresses that are tried, one after the other."""


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Network backend that connects to addresses that have passed the check only."""

    def __init__(
        self, look_up: LookUp, inner: httpcore.AsyncNetworkBackend, *, allow_private: bool
    ) -> None:
        self._look_up = look_up
        self._inner = inner
        self._allow_private = allow_private

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Look up and check the addresses, and connect to the first allowed one that answers.
        Raises `AddressRefused` if none is allowed."""
        addresses = await self._look_up(host)
        if not addresses:
            raise httpcore.ConnectError(f"The address of {host} can't be resolved")
        allowed = [each for each in addresses if self._allow_private or is_public(each)]
        if not allowed:
            raise AddressRefused(f"{host} does not have a public internet address.")
        failure: Exception | None = None
        for address in allowed[:MAX_ADDRESSES]:
            try:
                return await self._inner.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = failure or error
        raise failure or httpcore.ConnectError(f"{host} can't be reached")

    async def sleep(self, seconds: float) -> None:
        """See httpcore."""
        await self._inner.sleep(seconds)


class CheckedTransport(httpx.AsyncHTTPTransport):
    """Transport of httpx over connections of `CheckedBackend`."""

    def __init__(
        self, limits: ImportsSettings, look_up: LookUp, inner: httpcore.AsyncNetworkBackend
    ) -> None:
        context = _tls(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
        super().__init__(verify=context, trust_env=False)
        # httpx has no way to pass a backend in; the pool is all that its transport adds.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=100,
            max_keepalive_connections=10,
            keepalive_expiry=15,
            network_backend=CheckedBackend(look_up, inner, allow_private=limits.allow_private),
        )


@lru_cache(maxsize=2)
def _tls(file: str | None, folder: str | None) -> ssl.SSLContext:
    """Return the TLS context: with the operator's certificates, if there are any. Loading them
    takes a while."""
    return httpx.create_ssl_context(trust_env=bool(file or folder))
