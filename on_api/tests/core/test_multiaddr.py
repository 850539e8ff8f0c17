"""Addresses of strangers: which are read, what their names lead to, which may be dialled."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Thread

import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from on_api.core.ipfs.formats import multiaddr
from on_api.core.ipfs.formats.multiaddr import MAX_ADDRESSES, Multiaddr, Resolver, dialable
from on_api.core.net.addresses import Address, is_public

PEER = "12D3KooWJ59N9z5CyLTtcUvzuRQDdGMbGRsUGv4zGbGKGN1Vdzpa"
OTHER = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
PUBLIC = "8.8.8.8"

# A name of our own: nothing is asked of the internet.
NAME = "node.test"


class Names(Resolver):
    """Knows names by heart, and counts who asks."""

    def __init__(
        self,
        addresses: Mapping[str, Sequence[str]] | None = None,
        records: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self._known = addresses or {}
        self._records = records or {}
        self.asked = 0

    async def addresses(self, name: str, family: int) -> Sequence[Address]:
        """From memory."""
        self.asked += 1
        found = [ipaddress.ip_address(text) for text in self._known.get(name, ())]
        version = {socket.AF_INET: 4, socket.AF_INET6: 6}.get(socket.AddressFamily(family))
        return [address for address in found if version in {None, address.version}]

    async def dnsaddr(self, name: str) -> Sequence[str]:
        """From memory."""
        self.asked += 1
        return self._records.get(name, ())


def dial(
    *addresses: str, resolver: Resolver | None = None, allow_private: bool = False
) -> list[str]:
    """What may be dialled."""
    return asyncio.run(dialable(addresses, resolver or Names(), allow_private=allow_private))


@pytest.mark.parametrize(
    "text",
    [
        f"/ip4/{PUBLIC}/tcp/4001/p2p/{PEER}",
        f"/ip4/{PUBLIC}/tcp/4001/ipfs/{OTHER}",
        f"/ip6/2a00::1/udp/4001/quic-v1/p2p/{PEER}",
        f"/ip4/{PUBLIC}/udp/4001/quic-v1/webtransport/certhash/uEiAb_x-1/certhash/uEiB/p2p/{PEER}",
        f"/ip4/{PUBLIC}/udp/4001/webrtc-direct/certhash/uEiAb/p2p/{PEER}",
        f"/ip4/{PUBLIC}/tcp/443/tls/sni/a-b.example/ws/p2p/{PEER}",
        f"/dns4/{NAME}/tcp/443/wss/p2p/{PEER}",
        f"/dns/{NAME}./tcp/1/p2p/{PEER}",
        f"/dnsaddr/{NAME}/p2p/{PEER}",
        f"/ip4/{PUBLIC}/tcp/65535/p2p/k51qzi5uqu5dlvj2baxnqndepeb86cbk3ng7n3i46uzyxzyqj2xjonzllnv0v8",
    ],
)
def test_is_read(text: str) -> None:
    """What Kubo gives out, and what people write."""
    assert Multiaddr.parse(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "nonsense",
        f"ip4/{PUBLIC}/tcp/4001/p2p/{PEER}",
        f"/ip4/{PUBLIC}/tcp/4001",
        f"/ip4/{PUBLIC}/tcp/4001/p2p/",
        f"/ip4/{PUBLIC}/tcp/4001/p2p/{PEER}/",
        f"/ip4/{PUBLIC}/tcp/4001/p2p/short",
        f"/ip4/{PUBLIC}/tcp/4001/p2p/{PEER[:-1]}0",
        f"/ip4/{PUBLIC}/p2p/{PEER}",
        f"/ip4/{PUBLIC}/tcp/p2p/{PEER}",
        f"/ip4/{PUBLIC}/tcp/0/p2p/{PEER}",
        f"/ip4/{PUBLIC}/tcp/65536/p2p/{PEER}",
        f"/ip4/{PUBLIC}/tcp/-1/p2p/{PEER}",
        f"/ip4/{PUBLIC}/tcp/{'1' * 300}/p2p/{PEER}",
        f"/ip4/{PUBLIC}/tcp/4001/p2p/{OTHER}/p2p-circuit/p2p/{PEER}",
        f"/p2p/{OTHER}/p2p-circuit/p2p/{PEER}",
        f"/ip4/{PUBLIC}/tcp/4001/p2p-circuit/p2p/{PEER}",
        f"/ip4/8.8.8/tcp/4001/p2p/{PEER}",
        f"/ip4/08.8.8.8/tcp/4001/p2p/{PEER}",
        f"/ip4/2a00::1/tcp/4001/p2p/{PEER}",
        f"/ip6/{PUBLIC}/tcp/4001/p2p/{PEER}",
        f"/ip6/2a00::1%eth0/tcp/4001/p2p/{PEER}",
        f"/ip6zone/eth0/ip6/fe80::1/tcp/4001/p2p/{PEER}",
        f"/unix/tmp/socket/p2p/{PEER}",
        f"/onion3/abc:80/p2p/{PEER}",
        f"/dns4//tcp/1/p2p/{PEER}",
        f"/dns4/a\x00b/tcp/1/p2p/{PEER}",
        f"/dns4/a b/tcp/1/p2p/{PEER}",
        f"/dns4/a..b/tcp/1/p2p/{PEER}",
        f"/dns4/{'a' * 254}/tcp/1/p2p/{PEER}",
        f"/dns4/ü.test/tcp/1/p2p/{PEER}",
        f"/ip4/{PUBLIC}/tcp/1/tls/sni/a\x00b/ws/p2p/{PEER}",
        f"/ip4/{PUBLIC}/tcp/1/http-path/x/p2p/{PEER}",
        f"/ip4/{PUBLIC}/tcp/1" + "/ws" * 200 + f"/p2p/{PEER}",
    ],
)
def test_is_not_read(text: str) -> None:
    """No address, none with a peer, over a relay, or nothing that could be dialled."""
    assert Multiaddr.parse(text) is None
    assert dial(text, allow_private=True) == []


@given(st.text() | st.lists(st.sampled_from([
    "ip4", "ip6", "dns", "dnsaddr", "tcp", "udp", "p2p", "ws", "wss", "tls", "sni", "p2p-circuit",
    "127.0.0.1", PUBLIC, "::1", "::ffff:127.0.0.1", "1", "99999", NAME, PEER, "", "\x00", "%",
])).map(lambda steps: "/" + "/".join(steps)))  # fmt: skip
def test_anything_is_read_or_not(text: str) -> None:
    """Never an error; and whatever is dialled is of the internet, with a peer, without a name."""
    names = Names({NAME: ["127.0.0.1", PUBLIC, "fd00::1"]}, {NAME: [text]})
    for address in dial(text, resolver=names):
        read = Multiaddr.parse(address)
        assert read is not None
        assert read.kind in {"ip4", "ip6"}
        assert is_public(ipaddress.ip_address(read.host))


@pytest.mark.parametrize(
    "host",
    [
        "ip4/127.0.0.1", "ip4/10.0.0.1", "ip4/169.254.169.254", "ip4/192.168.0.1", "ip4/0.0.0.0",
        "ip4/203.0.113.7", "ip6/::1", "ip6/fe80::1", "ip6/fd00::1", "ip6/::ffff:127.0.0.1",
        "ip6/::ffff:10.0.0.1", "ip6/64:ff9b::10.0.0.1", "ip6/64:ff9b:1::7f00:1", "ip6/::127.0.0.1",
        "ip6/2002:7f00:1::", "dns4/inside.test", "dns/inside.test", "dns6/inside.test",
        "dnsaddr/inside.test",
    ],
)  # fmt: skip
def test_private_addresses_are_dialled_only_when_allowed(host: str) -> None:
    """However they are written, and whatever name leads to them."""
    names = Names(
        {"inside.test": ["127.0.0.1", "::1"]},
        {"inside.test": [f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}"]},
    )
    transport = "" if host.startswith("dnsaddr") else "/tcp/4001"
    text = f"/{host}{transport}/p2p/{PEER}"
    assert dial(text, resolver=names) == []
    assert dial(text, resolver=names, allow_private=True)


def test_a_name_becomes_the_addresses_that_were_looked_at() -> None:
    """Of the family asked for; the private ones among them are left out; each once."""
    names = Names({NAME: [PUBLIC, "10.0.0.1", "2a00::1", PUBLIC]})

    def found(kind: str) -> list[str]:
        return dial(f"/{kind}/{NAME}/tcp/4001/p2p/{PEER}", resolver=names)

    v4, v6 = f"/ip4/{PUBLIC}/tcp/4001/p2p/{PEER}", f"/ip6/2a00::1/tcp/4001/p2p/{PEER}"
    assert found("dns") == [v4, v6]
    assert found("dns4") == [v4]
    assert found("dns6") == [v6]
    assert dial(f"/dns/nobody.test/tcp/1/p2p/{PEER}", resolver=names) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/tcp/443/wss", f"/tcp/443/tls/sni/{NAME}/ws"),
        ("/tcp/443/tls/ws", f"/tcp/443/tls/sni/{NAME}/ws"),
        ("/tcp/443/tls/sni/x.test/ws", "/tcp/443/tls/sni/x.test/ws"),
        ("/tcp/80/ws", "/tcp/80/ws"),
        ("/udp/1/quic-v1", "/udp/1/quic-v1"),
    ],
)
def test_tls_still_learns_the_name(before: str, after: str) -> None:
    """Which is lost when only its address is dialled."""
    names = Names({NAME: [PUBLIC]})
    found = dial(f"/dns4/{NAME}{before}/p2p/{PEER}", resolver=names)
    assert found == [f"/ip4/{PUBLIC}{after}/p2p/{PEER}"]
    plain = f"/ip4/{PUBLIC}{before}/p2p/{PEER}"
    assert dial(plain) == [plain]


def test_twenty_at_most_in_their_order() -> None:
    """And each once."""
    many = [f"/ip4/{PUBLIC}/tcp/{port}/p2p/{PEER}" for port in range(1, 50)]
    assert dial(*many[:1], *many) == many[:MAX_ADDRESSES]


def test_names_that_lead_on_and_on_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """In depth, in number and in time: their owner decides what they lead to."""
    loop = f"/dnsaddr/{NAME}/p2p/{PEER}"
    circle = Names(records={NAME: [loop]})
    assert dial(loop, resolver=circle) == []
    assert circle.asked == multiaddr.MAX_DEPTH
    tree = Names(records={NAME: [loop] * 20})
    good = f"/ip4/{PUBLIC}/tcp/1/p2p/{PEER}"
    assert dial(good, loop, resolver=tree) == [good]
    assert tree.asked == multiaddr.MAX_LOOKUPS

    class Hangs(Names):
        async def dnsaddr(self, name: str) -> Sequence[str]:
            await asyncio.Event().wait()
            return ()

    monkeypatch.setattr(multiaddr, "SEARCH_SECONDS", 0.05)
    assert dial(good, loop, resolver=Hangs()) == [good]


@contextmanager
def name_server(records: Mapping[str, Sequence[str]]) -> Iterator[int]:
    """A DNS server on loopback that knows TXT records; yields its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                packet, client = server.recvfrom(4096)
                if packet == b"end":
                    return
                query = dns.message.from_wire(packet)
                name = query.question[0].name.to_text(omit_final_dot=True)
                answer = dns.message.make_response(query)
                if name not in records:
                    answer.set_rcode(dns.rcode.NXDOMAIN)
                elif records[name]:
                    texts = [f'"{text}"' for text in records[name]]
                    answer.answer.append(dns.rrset.from_text(f"{name}.", 1, "IN", "TXT", *texts))
                server.sendto(answer.to_wire(), client)

        thread = Thread(target=serve, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        try:
            yield port
        finally:
            server.sendto(b"end", ("127.0.0.1", port))
            thread.join(5)


def test_dnsaddr_over_a_real_name_server() -> None:
    """Records of `_dnsaddr.NAME`, over several names, only of the peer that was asked for."""
    first = f"/ip4/{PUBLIC}/tcp/1/p2p/{PEER}"
    records = {
        f"_dnsaddr.{NAME}": [
            f"dnsaddr={first}",
            f"dnsaddr=/ip4/{PUBLIC}/tcp/2/p2p/{OTHER}",
            f"dnsaddr=/ip4/127.0.0.1/tcp/3/p2p/{PEER}",
            f"dnsaddr=/dnsaddr/further.{NAME}/p2p/{PEER}",
            f"dnsaddr=/ip4/{PUBLIC}/tcp/4/p2p/{OTHER}/p2p-circuit/p2p/{PEER}",
            "dnsaddr=nonsense",
            "v=spf1 -all",
        ],
        # In two strings, as long records are.
        f"_dnsaddr.further.{NAME}": [f'dnsaddr=/ip6/2a00::1/udp/4/quic-v1" "/p2p/{PEER}'],
        f"_dnsaddr.empty.{NAME}": [],
    }
    with name_server(records) as port:
        resolver = Resolver(["127.0.0.1"], port)
        found = dial(f"/dnsaddr/{NAME}/p2p/{PEER}", resolver=resolver)
        # In whatever order the records come.
        assert sorted(found) == [first, f"/ip6/2a00::1/udp/4/quic-v1/p2p/{PEER}"]
        assert dial(f"/dnsaddr/{NAME}/p2p/{PEER[:-1]}b", resolver=resolver) == []
        assert dial(f"/dnsaddr/nobody.{NAME}/p2p/{PEER}", resolver=resolver) == []
        assert dial(f"/dnsaddr/empty.{NAME}/p2p/{PEER}", resolver=resolver) == []


def test_a_name_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is one that isn't there."""
    monkeypatch.setattr(multiaddr, "RESOLVE_SECONDS", 0.2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        assert dial(f"/dnsaddr/{NAME}/p2p/{PEER}", resolver=Resolver(["127.0.0.1"], port)) == []
    assert dial(f"/dnsaddr/{NAME}/p2p/{PEER}", resolver=Resolver(["127.0.0.1"], port)) == []


def test_the_systems_resolver() -> None:
    """Knows the machine itself; names that are none have no addresses."""
    text = f"/dns4/localhost/tcp/1/p2p/{PEER}"
    assert dial(text, resolver=Resolver()) == []
    here = [f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"]
    assert dial(text, resolver=Resolver(), allow_private=True) == here
    assert dial(f"/dns4/{'a' * 64}.invalid/tcp/1/p2p/{PEER}", resolver=Resolver()) == []
