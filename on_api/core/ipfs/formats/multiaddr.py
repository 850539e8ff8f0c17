"""Untrusted multiaddrs to dial: parsed, resolved, and checked before the node dials them.

The result holds checked IP addresses only: a name is resolved here, once, so that the address that
is dialled is the one that was checked. Relays are dropped, since they reach addresses that can't be
checked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import libipld

from on_api.core.net.addresses import RESOLVE_SECONDS, Address, is_public, look_up

MAX_LENGTH = 512
MAX_ADDRESSES = 20
"""Number of addresses dialled for one pin, after names were resolved."""
MAX_ADDRESSES_PER_NAME = 8
MAX_DEPTH = 4
"""Number of `/dnsaddr` that may lead to one another."""
SEARCH_SECONDS = 15.0
MAX_LOOKUPS = 50
"""Number of lookups for all addresses of one pin: the owner of a name could make it lead on for
ever."""

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", re.ASCII)
_VALUE = re.compile(r"[A-Za-z0-9._=-]+", re.ASCII)
_WITH_VALUE = {"tcp", "udp", "sni", "certhash"}
_PLAIN = {"quic", "quic-v1", "tls", "ws", "wss", "webtransport", "webrtc-direct", "noise", "http"}
_FAMILIES = {
    "dns": socket.AF_UNSPEC,
    "dns4": socket.AF_INET,
    "dns6": socket.AF_INET6,
}


@dataclass(frozen=True, slots=True)
class Multiaddr:
    """A multiaddr `/<kind>/<host><transport>/p2p/<peer>`; `transport` is the part in between,
    unchanged."""

    kind: str
    host: str
    transport: str
    peer: str

    @classmethod
    def parse(cls, text: str) -> Multiaddr | None:
        """Parse one; None if it is not a multiaddr, has no peer, or leads over a relay."""
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
        """Return the multiaddr of the same peer at an IP address; a name that TLS needs is kept as
        `sni`."""
        transport = self.transport
        if self.kind in _FAMILIES:
            steps = f"{transport}/"
            for secure in ("/wss/", "/tls/ws/"):
                steps = steps.replace(secure, f"/tls/sni/{self.host}/ws/", 1)
            transport = steps[:-1]
        return f"/ip{address.version}/{address}{transport}/p2p/{self.peer}"


class Resolver:
    """Looks up names with the system's resolvers, or those at `nameservers` (for TXT)."""

    def __init__(self, nameservers: Sequence[str] = (), port: int = 53) -> None:
        self._nameservers = nameservers
        self._port = port

    async def addresses(self, name: str, family: int) -> Sequence[Address]:
        """Return the IP addresses of a name, at most `MAX_ADDRESSES_PER_NAME`; empty when it
        has none."""
        return (await look_up(name, family))[:MAX_ADDRESSES_PER_NAME]

    async def dnsaddr(self, name: str) -> Sequence[str]:
        """Return the multiaddrs in the TXT records of `_dnsaddr.<name>` (the dnsaddr
        specification), at most `MAX_ADDRESSES`."""
        import dns.asyncresolver
        import dns.exception

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
    """Return those of `addresses` that may be dialled, names resolved: at most `MAX_ADDRESSES`, in
    order.

    Without `allow_private` only addresses of the public internet are kept. Stops after
    `SEARCH_SECONDS` with the result so far.
    """
    search = _Search(resolver, allow_private)
    with suppress(_EnoughError, TimeoutError):
        async with asyncio.timeout(SEARCH_SECONDS):
            for text in addresses:
                await search.follow(text, MAX_DEPTH)
    return list(search.found)


class _EnoughError(Exception):
    """One pin's limit of addresses found, or of lookups, is reached."""


class _Search:
    """Search for the dialable addresses of one pin."""

    def __init__(self, resolver: Resolver, allow_private: bool) -> None:
        self.found: dict[str, None] = {}
        self._resolver = resolver
        self._allow_private = allow_private
        self._lookups_left = MAX_LOOKUPS

    async def follow(self, text: str, depth: int) -> None:
        """Add the addresses that a multiaddr leads to, over at most `depth` nested names."""
        multiaddr = Multiaddr.parse(text)
        if multiaddr is None:
            return
        if multiaddr.kind != "dnsaddr":
            for address in await self._ip_addresses(multiaddr):
                self._add(multiaddr, address)
        elif depth > 0:
            self._count_lookup()
            for inner in await self._resolver.dnsaddr(multiaddr.host):
                # Only addresses of the named peer: the record may list a whole network's.
                if inner.endswith(f"/p2p/{multiaddr.peer}"):
                    await self.follow(inner, depth - 1)

    async def _ip_addresses(self, multiaddr: Multiaddr) -> Sequence[Address]:
        family = _FAMILIES.get(multiaddr.kind)
        if family is None:
            return [ipaddress.ip_address(multiaddr.host)]
        self._count_lookup()
        return await self._resolver.addresses(multiaddr.host, family)

    def _add(self, multiaddr: Multiaddr, address: Address) -> None:
        if self._allow_private or is_public(address):
            self.found[multiaddr.at(address)] = None
        if len(self.found) >= MAX_ADDRESSES:
            raise _EnoughError

    def _count_lookup(self) -> None:
        if self._lookups_left == 0:
            raise _EnoughError
        self._lookups_left -= 1


def _is_host(kind: str, host: str) -> bool:
    if kind in {"ip4", "ip6"}:
        try:
            # With a zone (`%eth0`) it would be valid on one machine only.
            return "%" not in host and ipaddress.ip_address(host).version == int(kind[2])
        except ValueError:
            return False
    is_name = len(host) <= 253 and _NAME.fullmatch(host) is not None
    return is_name and (kind in _FAMILIES or kind == "dnsaddr")


def _is_transport(steps: Sequence[str], *, required: bool) -> bool:
    if not steps:
        return not required
    remaining = iter(steps)
    for step in remaining:
        if step in _WITH_VALUE:
            value = next(remaining, "")
            is_port = value.isdigit() and len(value) <= 5 and 0 < int(value) < 65536
            if not (is_port if step in {"tcp", "udp"} else _VALUE.fullmatch(value)):
                return False
        elif step not in _PLAIN:  # p2p-circuit among them
            return False
    return True


def _is_peer_id(text: str) -> bool:
    """Return whether this is a base58 multihash (`12D3Koo…`, `Qm…`) or a CID of the codec
    libp2p-key."""
    if not 32 <= len(text) <= 128 or not text.isalnum():
        return False
    try:
        libipld.decode_multibase(f"z{text}" if text[0] in "1Q" else text)
    except ValueError:
        return False
    return True
