"""The internet addresses that users may make on-api connect to: those of the public internet; and
the lookup of names."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence

RESOLVE_SECONDS = 5.0

# An IPv4 address embedded in IPv6 is judged as the IPv4 address (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

# All of IPv6 that was ever allocated (RFC 4291, section 2.4). Python calls much of the rest global:
# site-local, local NAT64, IPv4-compatible addresses.
_GIVEN_OUT = ipaddress.IPv6Network("2000::/3")

# For protocols, for documentation, and tunnels with an unknown other end (6to4, RFC 7526; Teredo).
# Not every version of Python knows them.
_SPECIAL = (
    ipaddress.IPv4Network("192.0.0.0/24"),
    ipaddress.IPv6Network("2001::/32"),
    ipaddress.IPv6Network("2002::/16"),
    ipaddress.IPv6Network("3fff::/20"),
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Return whether an address belongs to the public internet: not loopback, private, link-local,
    multicast or reserved."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(address.packed[12:])
        if inner is not None:
            return is_public(inner)
        if address not in _GIVEN_OUT:
            return False
    is_special = any(address in network for network in _SPECIAL)
    return address.is_global and not address.is_multicast and not is_special


LookUp = Callable[[str], Awaitable[Sequence[Address]]]


async def look_up(name: str, family: int = socket.AF_UNSPEC) -> Sequence[Address]:
    """Return the IP addresses of a name, as the system resolves it; empty when it has none."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            found = await loop.getaddrinfo(name, 0, family=family, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        return ()
    texts = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
    return [ipaddress.ip_address(text) for text in texts]
