"""What belongs to the public internet, in whatever clothes it comes."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from on_api.core.net.addresses import is_public

PRIVATE_V4 = [
    "0.0.0.0",  # noqa: S104 (nothing is bound)
    "0.1.2.3", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.168.1.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.7", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
]  # fmt: skip
PUBLIC_V4 = ["1.1.1.1", "8.8.8.8", "100.63.255.255", "172.32.0.1", "192.167.1.1", "223.255.255.1"]
PRIVATE_V6 = [
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "64:ff9b:1::1", "100::1", "fc00::1", "fd12::1",
    "fe80::1", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1", "2001::1", "2002:808:808::1",
    "3fff::1", "4000::1", "5f00::1",
]  # fmt: skip
PUBLIC_V6 = ["2001:4860:4860::8888", "2606:4700::1111", "2a00::1"]


def clothes(address: str) -> list[str]:
    """An IPv4 address as IPv6: mapped, by NAT64."""
    return [f"::ffff:{address}", f"64:ff9b::{address}"]


@pytest.mark.parametrize("address", PRIVATE_V4 + PRIVATE_V6)
def test_not_of_the_internet(address: str) -> None:
    """Loopback, private, link-local, multicast, reserved, for documentation."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC_V4 + PUBLIC_V6)
def test_of_the_internet(address: str) -> None:
    """Everybody's."""
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PRIVATE_V4 + PUBLIC_V4)
def test_clothes_change_nothing(address: str) -> None:
    """An IPv4 address in IPv6 is what it is."""
    plain = is_public(ipaddress.ip_address(address))
    for dressed in clothes(address):
        assert is_public(ipaddress.ip_address(dressed)) is plain, dressed


@given(st.ip_addresses(v=4))
def test_clothes_change_nothing_of_any(address: ipaddress.IPv4Address) -> None:
    """Of all there are."""
    plain = is_public(address)
    assert all(is_public(ipaddress.ip_address(text)) is plain for text in clothes(str(address)))


@given(st.ip_addresses(v=6))
def test_what_is_public_is_global_unicast(address: ipaddress.IPv6Address) -> None:
    """Nothing that Python itself calls private passes."""
    if is_public(address):
        kinds = ("private", "loopback", "link_local", "site_local", "multicast", "unspecified")
        assert not any(getattr(address, f"is_{kind}") for kind in kinds)
