"""What every node behind the port must do: the same tests on a real Kubo and on the one in
memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import libipld
import pytest
from pydantic import SecretStr

from on_api.core.errors import BlocksMissing, NodeError
from on_api.core.ipfs.formats.bundle import make_bundle
from on_api.core.ipfs.formats.car import CarError, CarReader
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.ipfs.formats.dag import DAG_CBOR, links_of
from on_api.core.ipfs.formats.multiaddr import Multiaddr
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.ipfs.kubo.control import KuboNode
from on_api.core.ipfs.memory import MemoryNode
from on_api.core.ipfs.port import DagStat, IpfsNode, NodePin
from on_api.core.settings import Settings
from on_api.tests.conftest import RPC_SECRET, Kubo, free_port
from on_api.tests.testing.dags import block_of, follow, tree

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
SIZES = [0, 1, 65535, 65536, 65537, MIB - 1, MIB, MIB + 1, 5 * MIB]


@pytest.fixture(params=["kubo", "memory"])
async def node(request: pytest.FixtureRequest) -> AsyncIterator[IpfsNode]:
    """One of the implementations."""
    made: IpfsNode
    if request.param == "memory":
        made = MemoryNode()
    else:
        kubo: Kubo = request.getfixturevalue("kubo")
        settings = Settings(_env_file=None, ipfs=kubo.ipfs, secret_key=SecretStr("x" * 32))
        made = KuboNode(settings, RPC_SECRET)
    yield made
    await made.close()


async def source(data: bytes, chunk: int = 65536) -> AsyncIterator[bytes]:
    """The bytes, in chunks."""
    for start in range(0, len(data), chunk):
        yield data[start : start + chunk]


async def read(node: IpfsNode, cid: str, offset: int, length: int) -> bytes:
    """The bytes of a range."""
    async with node.read(cid, offset=offset, length=length) as chunks:
        return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("size", SIZES)
async def test_add_gives_the_profiles_cid_and_size(node: IpfsNode, size: int) -> None:
    """CID and cumulative size are those of the profile, computed independently; pinned by name."""
    data = os.urandom(size)
    added = await node.add(source(data), pin_name="on-api/test/1")
    expected = build_file(data)
    assert (added.cid, added.size, added.dag_size) == (expected.cid, size, expected.dag_size)
    pin = await node.pin_status(added.cid)
    assert pin is not None
    assert pin.name == "on-api/test/1"
    assert await read(node, added.cid, 0, size) == data


async def test_ranges_are_slices(node: IpfsNode) -> None:
    """At every boundary of blocks and of the file."""
    data = os.urandom(2 * MIB + 11)
    cid = (await node.add(source(data), pin_name="on-api/test/2")).cid
    edges = sorted({0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, len(data) - 1})
    for offset in edges:
        for length in (0, 1, 2, MIB, len(data) - offset):
            if offset + length <= len(data):
                assert await read(node, cid, offset, length) == data[offset : offset + length]


async def test_the_same_bytes_twice_are_one_pin(node: IpfsNode) -> None:
    """The later name stands; the content stays pinned throughout."""
    data = os.urandom(2000)
    first = await node.add(source(data), pin_name="on-api/test/first")
    second = await node.add(source(data), pin_name="on-api/test/second")
    assert first == second
    pin = await node.pin_status(first.cid)
    assert pin is not None
    assert pin.name == "on-api/test/second"


async def test_many_at_once(node: IpfsNode) -> None:
    """Of the same bytes and of different ones."""
    same, different = os.urandom(MIB + 1), [os.urandom(5000 + n) for n in range(16)]
    everything = [same] * 16 + different
    added = await asyncio.gather(
        *(node.add(source(d), pin_name=f"on-api/test/{n}") for n, d in enumerate(everything))
    )
    assert [a.cid for a in added] == [build_file(d).cid for d in everything]


@pytest.mark.parametrize("after", [0, 32, 3 * MIB])
async def test_a_source_that_fails_leaves_nothing(node: IpfsNode, after: int) -> None:
    """Its exception comes out unchanged; neither the part nor the whole is pinned."""

    class ClientGone(Exception):
        pass

    data = os.urandom(after)

    async def failing() -> AsyncIterator[bytes]:
        async for chunk in source(data):
            yield chunk
        raise ClientGone

    with pytest.raises(ClientGone):
        await node.add(failing(), pin_name="on-api/test/failed")
    if after:  # the empty file may be pinned by another test
        assert await node.pin_status(build_file(data).cid) is None
    assert (await node.add(source(b"again"), pin_name="on-api/test/again")).size == 5


async def test_a_reader_that_stops_early_does_no_harm(node: IpfsNode) -> None:
    """The node answers others afterwards."""
    data = os.urandom(8 * MIB)
    cid = (await node.add(source(data), pin_name="on-api/test/stop")).cid
    for _ in range(5):
        async with node.read(cid, offset=0, length=len(data)) as chunks:
            assert await anext(aiter(chunks))
    assert await read(node, cid, 100, 10) == data[100:110]


async def test_what_the_node_does_not_have(node: IpfsNode) -> None:
    """An error in bounded time, before the first byte; never a search on the network."""
    missing = build_file(os.urandom(100)).cid
    assert await node.pin_status(missing) is None
    async with asyncio.timeout(10):
        with pytest.raises(NodeError):
            async with node.read(missing, offset=0, length=100):
                pytest.fail("opened what is not there")


async def test_it_can_say_who_it_is(node: IpfsNode) -> None:
    """Version, identity, peers, store."""
    version = await node.version()
    assert version.tested
    assert await node.peer_id()
    assert await node.peer_count() == 0
    exchanged = await node.exchanged()
    assert (exchanged.sent, exchanged.received) == (0, 0)
    before = await node.repo_stat()
    await node.add(source(os.urandom(100_000)), pin_name="on-api/test/stat")
    assert (await node.repo_stat()).size > before.size
    assert (await node.repo_stat()).storage_max > 10**9


async def unpinned(node: IpfsNode, data: bytes) -> str:
    """Content that lies on the node without a pin."""
    cid = (await node.add(source(data), pin_name="on-api/test/unpinned")).cid
    await node.unpin(cid)
    return cid


@pytest.mark.parametrize("size", [0, 1, MIB + 1, 3 * MIB])
async def test_pinning_what_is_there(node: IpfsNode, size: int) -> None:
    """Under its name; size and number of the different blocks are told. Unpinned it is as if it had
    never been pinned, and unpinning twice is fine."""
    data = os.urandom(size)
    blocks = {part.cid: part.block for part in build_file(data).walk()}
    expected = DagStat(sum(map(len, blocks.values())), len(blocks))
    cid = await unpinned(node, data)
    assert await node.pin_status(cid) is None
    assert await node.dag_stat(cid) == expected
    assert await node.pin(cid, name="on-api/test/pin", fetch=False) == expected
    assert await node.pin_status(cid) == NodePin(cid, "on-api/test/pin")
    assert NodePin(cid, "on-api/test/pin") in [pin async for pin in node.pins()]
    for _ in range(2):
        await node.unpin(cid)
        assert await node.pin_status(cid) is None
    assert cid not in {pin.cid async for pin in node.pins()}


async def test_equal_blocks_are_counted_once(node: IpfsNode) -> None:
    """As they lie on the disk once."""
    cid = await unpinned(node, bytes(4 * MIB) + b"end")
    assert (await node.dag_stat(cid)).blocks == 3
    assert (await node.pin(cid, name="on-api/test/zeros", fetch=False)).blocks == 3


async def test_pinning_what_is_not_there(node: IpfsNode) -> None:
    """Without the network it is told at once; nothing stays pinned."""
    cid = build_file(os.urandom(100)).cid
    async with asyncio.timeout(10):
        with pytest.raises(BlocksMissing):
            await node.pin(cid, name="on-api/test/missing", fetch=False)
        with pytest.raises(BlocksMissing):
            await node.dag_stat(cid)
        with pytest.raises((BlocksMissing, CarError)):
            async with node.car(cid) as chunks:
                await follow(Cid.from_text(cid), CarReader(chunks).blocks())
    assert await node.pin_status(cid) is None


async def test_a_fetch_that_is_given_up(node: IpfsNode) -> None:
    """It waits for as long as its caller does, and then it is over."""
    data = os.urandom(100)
    cid = build_file(data).cid
    fetch = asyncio.create_task(node.pin(cid, name="on-api/test/fetch", fetch=True))
    done, _ = await asyncio.wait([fetch], timeout=1)
    assert not done
    fetch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetch
    await unpinned(node, data)
    assert await node.pin_status(cid) is None


@pytest.mark.parametrize("data", [b"", b"small", bytes(3 * MIB) + b"end"], ids=len)
async def test_a_car_is_the_whole_dag(node: IpfsNode, data: bytes) -> None:
    """Its root, and every different block once, in the order of a walk."""
    cid = await unpinned(node, data)
    root = Cid.from_text(cid)
    async with node.car(cid) as chunks:
        reader = CarReader(chunks)
        expected = {part.cid: part.block for part in build_file(data).walk()}
        count, size = await follow(root, reader.blocks())
    assert list(reader.roots) == [root]
    assert (count, size) == (len(expected), sum(map(len, expected.values())))


async def test_blocks_by_themselves(node: IpfsNode) -> None:
    """Stored as they come, without a pin; read one by one; none that isn't there."""
    root, blocks = tree()

    async def arriving() -> AsyncIterator[tuple[Cid, bytes]]:
        for each in blocks.items():
            yield each

    async def nothing() -> AsyncIterator[tuple[Cid, bytes]]:
        return
        yield

    size = sum(map(len, blocks.values()))
    assert await node.block(str(root)) is None
    assert await node.import_blocks(nothing()) == DagStat(0, 0)
    assert await node.import_blocks(arriving()) == DagStat(size, len(blocks))
    assert [await node.block(str(cid)) for cid in blocks] == list(blocks.values())
    assert await node.pin_status(str(root)) is None
    assert await node.dag_stat(str(root)) == DagStat(size, len(blocks))
    stat = await node.pin(str(root), name="on-api/test/blocks", fetch=False)
    assert stat.blocks == len(blocks)


async def test_blocks_that_stop_coming(node: IpfsNode) -> None:
    """The reason comes out as it is."""

    class GoneError(Exception):
        pass

    async def failing() -> AsyncIterator[tuple[Cid, bytes]]:
        for each in tree()[1].items():
            yield each
        raise GoneError

    with pytest.raises(GoneError):
        await node.import_blocks(failing())


async def test_a_peer_that_is_not_there(node: IpfsNode) -> None:
    """An error in bounded time."""
    stranger = "12D3KooWJ59N9z5CyLTtcUvzuRQDdGMbGRsUGv4zGbGKGN1Vdzpa"
    async with asyncio.timeout(20):
        with pytest.raises(NodeError):
            await node.connect(f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{stranger}")
        with pytest.raises(NodeError):
            await node.connect("/no/multiaddr")


async def test_where_it_listens(node: IpfsNode) -> None:
    """Multiaddrs that end in its identity, as clients demand of delegates."""
    addresses = await node.addresses()
    assert addresses
    for address in addresses:
        multiaddr = Multiaddr.parse(address)
        assert multiaddr is not None
        assert len(multiaddr.peer) > 40


async def test_garbage_is_what_no_pin_covers(node: IpfsNode) -> None:
    """The pinned stays whole, the rest is gone."""
    kept, gone = os.urandom(MIB + 1), os.urandom(MIB + 2)
    added = await node.add(source(kept), pin_name="on-api/test/kept")
    dead = await unpinned(node, gone)
    assert await node.collect_garbage() >= 1
    with pytest.raises(BlocksMissing):
        await node.dag_stat(dead)
    assert await read(node, added.cid, 0, len(kept)) == kept
    assert (await node.dag_stat(added.cid)).blocks == 3


async def test_a_bundle_is_stored_and_pinned_as_one(node: IpfsNode) -> None:
    """Every file is read by its own CID; the one pin covers all of them."""
    blocks = [block_of(os.urandom(size)) for size in (1, 100, 65_536)]
    bundle = make_bundle(blocks, os.urandom(16))
    await node.store_bundle(bundle, pin_name="on-api/test/bundle")
    root = str(bundle.cid)
    assert await node.pin_status(root) == NodePin(root, "on-api/test/bundle")
    assert await node.dag_stat(root) == DagStat(bundle.dag_size, 4)
    await node.collect_garbage()
    for cid, data in blocks:
        assert await node.pin_status(str(cid)) is None
        assert await read(node, str(cid), 0, len(data)) == data


@pytest.mark.parametrize("count", [1, 23, 24, 255, 256])
def test_a_bundle_is_dag_cbor(count: int) -> None:
    """As another reader has it, at every width of the list's length; no two are alike."""
    blocks = [block_of(os.urandom(10)) for _ in range(count)]
    bundle = make_bundle(blocks, b"the job's number")
    decoded = libipld.decode_dag_cbor(bundle.node)
    assert decoded["job"] == b"the job's number"
    assert [Cid.from_bytes(raw) for raw in decoded["files"]] == [cid for cid, _ in blocks]
    assert libipld.encode_dag_cbor(decoded)[:20] == bundle.node[:20]
    assert links_of(DAG_CBOR, bundle.node) == [cid for cid, _ in blocks]
    assert make_bundle(blocks, b"another job, 16.").cid != bundle.cid
