"""Multiaddrs that strangers give us to dial: read, resolved, and checked before anyone dials them.

What comes out holds IP addresses only, each one checked: a name is resolved here, once, and what is
dialled is what was looked at. Relays are dropped, since they reach what could not be checked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dns.asyncresolver
import dns.exception
import libipld

from on_api.core.addresses import Address, is_public

logger = logging.getLogger(__name__)

MAX_LENGTH = 512
MAX_ADDRESSES = 20
"""Dialled for one pin, after names were resolved."""
MAX_PER_NAME = 8
MAX_DEPTH = 4
"""Of `/dnsaddr` that lead to `/dnsaddr`."""
RESOLVE_SECONDS = 5.0

_WITH_VALUE = {"tcp", "udp", "sni", "certhash"}
_PLAIN = {"quic", "quic-v1", "tls", "ws", "wss", "webtransport", "webrtc-direct", "noise", "http"}
_FAMILIES = {
    "dns": socket.AF_UNSPEC,
    "dns4": socket.AF_INET,
    "dns6": socket.AF_INET6,
}


@dataclass(frozen=True, slots=True)
class Multiaddr:
    """`/<kind>/<host><transport>/p2p/<peer>`; `transport` is what stands between, as it was."""

    kind: str
    host: str
    transport: str
    peer: str

    @classmethod
    def parse(cls, text: str) -> Multiaddr | None:
        """Read one; None for what is none, has no peer, or leads over a relay."""
        if len(text) > MAX_LENGTH or not text.isascii() or not text.startswith("/"):
            return None
        steps = text[1:].split("/")
        if len(steps) < 4 or steps[-2] not in {"p2p", "ipfs"} or not _is_peer_id(steps[-1]):
            return None
        kind, host, between = steps[0], steps[1], steps[2:-2]
        if not _is_host(kind, host) or not _is_transport(between, required=kind != "dnsaddr"):
            return None
        return cls(kind, host, "".join(f"/{step}" for step in between), steps[-1])

    def at(self, address: Address) -> str:
        """The same peer at an IP address; a name that TLS needs to know is kept as `sni`."""
        transport = self.transport
        if self.kind in _FAMILIES:
            for secure in ("/wss", "/tls/ws"):
                transport = transport.replace(secure, f"/tls/sni/{self.host}/ws", 1)
        return f"/ip{address.version}/{address}{transport}/p2p/{self.peer}"


class Resolver:
    """Looks names up with the system's resolvers, or those at `nameservers` (for TXT)."""

    def __init__(self, nameservers: Sequence[str] = (), port: int = 53) -> None:
        self._nameservers = nameservers
        self._port = port

    async def addresses(self, name: str, family: int) -> Sequence[Address]:
        """The IP addresses of a name; empty when it has none."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                found = await loop.getaddrinfo(name, 0, family=family, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError):
            return ()
        texts = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
        return [ipaddress.ip_address(text) for text in texts][:MAX_PER_NAME]

    async def dnsaddr(self, name: str) -> Sequence[str]:
        """The multiaddrs in the TXT records of `_dnsaddr.<name>` (the dnsaddr specification)."""
        try:
            resolver = dns.asyncresolver.Resolver(configure=not self._nameservers)
            if self._nameservers:
                resolver.nameservers, resolver.port = list(self._nameservers), self._port
            answer = await resolver.resolve(f"_dnsaddr.{name}", "TXT", lifetime=RESOLVE_SECONDS)
        except (dns.exception.DNSException, OSError):
            return ()
        texts = [b"".join(record.strings).decode("ascii", "replace") for record in answer]
        return [text.removeprefix("dnsaddr=") for text in texts if text.startswith("dnsaddr=")][
            :MAX_ADDRESSES
        ]


async def dialable(
    addresses: Iterable[str], resolver: Resolver, *, allow_private: bool
) -> list[str]:
    """What of `addresses` may be dialled, with names resolved: at most `MAX_ADDRESSES`, in order.

    Without `allow_private` only addresses of the public internet are left.
    """
    found: dict[str, None] = {}
    for text in addresses:
        for multiaddr in await _without_dnsaddr(text, resolver, MAX_DEPTH):
            for address in await _ip_addresses(multiaddr, resolver):
                if allow_private or is_public(address):
                    found[multiaddr.at(address)] = None
                if len(found) >= MAX_ADDRESSES:
                    return list(found)
    return list(found)


async def _without_dnsaddr(text: str, resolver: Resolver, depth: int) -> list[Multiaddr]:
    multiaddr = Multiaddr.parse(text)
    if multiaddr is None:
        return []
    if multiaddr.kind != "dnsaddr":
        return [multiaddr]
    if depth == 0:
        return []
    found: list[Multiaddr] = []
    for inner in await resolver.dnsaddr(multiaddr.host):
        # Only addresses of the peer that was named: the record may list a whole network's.
        if inner.endswith(f"/p2p/{multiaddr.peer}"):
            found += await _without_dnsaddr(inner, resolver, depth - 1)
        if len(found) >= MAX_ADDRESSES:
            break
    return found[:MAX_ADDRESSES]


async def _ip_addresses(multiaddr: Multiaddr, resolver: Resolver) -> Sequence[Address]:
    family = _FAMILIES.get(multiaddr.kind)
    if family is None:
        return [ipaddress.ip_address(multiaddr.host)]
    return await resolver.addresses(multiaddr.host, family)


def _is_host(kind: str, host: str) -> bool:
    if kind in {"ip4", "ip6"}:
        try:
            return ipaddress.ip_address(host).version == int(kind[2])
        except ValueError:
            return False
    return (kind in _FAMILIES or kind == "dnsaddr") and 0 < len(host) <= 253


def _is_transport(steps: Sequence[str], *, required: bool) -> bool:
    if not steps:
        return not required
    remaining = iter(steps)
    for step in remaining:
        if step in _WITH_VALUE:
            value = next(remaining, "")
            is_port = value.isdigit() and 0 < int(value) < 65536
            if not (is_port if step in {"tcp", "udp"} else value):
                return False
        elif step not in _PLAIN:  # p2p-circuit among them
            return False
    return True


def _is_peer_id(text: str) -> bool:
    """A base58 multihash (`12D3Koo…`, `Qm…`) or a CID of the codec libp2p-key."""
    if not 32 <= len(text) <= 128 or not text.isalnum():
        return False
    try:
        libipld.decode_multibase(f"z{text}" if text[0] in "1Q" else text)
    except ValueError:
        return False
    return True
