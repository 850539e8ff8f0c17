"""What only a Kubo with damage on its disk shows: holes, wrong blocks, blocks that nobody can
read."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from on_api.core.errors import (
    BlocksMissing,
    InsufficientStorage,
    NodeError,
    NodeTimeout,
    NodeTruncated,
)
from on_api.core.ipfs.formats.bundle import make_bundle
from on_api.core.ipfs.formats.car import CarError, CarReader
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.ipfs.formats.dag import DAG_CBOR, DagError
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.ipfs.kubo.control import KuboNode
from on_api.core.ipfs.port import DagStat
from on_api.core.settings import Settings
from on_api.tests.conftest import RPC_SECRET, Kubo
from on_api.tests.contract.test_ipfs_node import source, unpinned
from on_api.tests.testing.blockstore import Blockstore
from on_api.tests.testing.dags import block_of, follow
from on_api.tests.testing.faulty_node import Exchange, faulty_node, hangs, hangs_up, line, says
from on_api.tests.testing.rpc_proxy import held_rpc

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
CID = build_file(b"hello").cid
PIN_ADD, PIN_LS, DAG_STAT, GC = (
    "/api/v0/pin/add",
    "/api/v0/pin/ls",
    "/api/v0/dag/stat",
    "/api/v0/repo/gc",
)


@pytest.fixture
async def node(kubo: Kubo) -> AsyncIterator[KuboNode]:
    """A real one."""
    settings = Settings(_env_file=None, ipfs=kubo.ipfs, secret_key=SecretStr("x" * 32))
    async with KuboNode(settings, RPC_SECRET) as made:
        yield made


@pytest.fixture
def blocks(kubo: Kubo) -> Blockstore:
    """Its disk."""
    return Blockstore(kubo.home / "ipfs")


async def walk(node: KuboNode, cid: str) -> tuple[int, int]:
    """Every block of a DAG, each verified."""
    async with node.car(cid) as chunks:
        return await follow(Cid.from_text(cid), CarReader(chunks).blocks())


@pytest.mark.parametrize("place", [0, 1, -1], ids=["root", "first leaf", "last leaf"])
async def test_a_hole(node: KuboNode, blocks: Blockstore, place: int) -> None:
    """Wherever it is: pin, walk and CAR all tell, and the pin that was not made is not there."""
    data = os.urandom(3 * MIB)
    cid = await unpinned(node, data)
    blocks.take([part.cid for part in build_file(data).walk()][place])
    async with asyncio.timeout(20):
        with pytest.raises(BlocksMissing):
            await node.pin(cid, name="on-api/test/hole", fetch=False)
        assert await node.pin_status(cid) is None
        with pytest.raises(BlocksMissing):
            await node.dag_stat(cid)
        with pytest.raises((CarError, DagError, NodeError)):
            await walk(node, cid)


@pytest.mark.parametrize(
    ("hole", "stall_timeout"), [("root", 600), ("member", 2)], ids=["root", "member"]
)
async def test_a_hole_in_a_bundle_before_it_is_pinned(
    kubo: Kubo, blocks: Blockstore, hole: str, stall_timeout: int
) -> None:
    """The node isn't asked to look for the root elsewhere; for what is below it looks, and is
    waited for as long as for any transfer that has stalled."""
    parts = [block_of(os.urandom(size)) for size in (100, 200)]
    bundle = make_bundle(parts, os.urandom(16))
    with held_rpc(str(kubo.ipfs.rpc_url)) as rpc:
        gate = rpc.hold("pin/add")
        changes = {"rpc_url": rpc.url, "stall_timeout": stall_timeout}
        ipfs = kubo.ipfs.model_copy(update=changes)
        settings = Settings(_env_file=None, ipfs=ipfs, secret_key=SecretStr("x" * 32))
        async with KuboNode(settings, RPC_SECRET) as node, asyncio.timeout(60):
            storing = asyncio.create_task(node.store_bundle(bundle, pin_name="on-api/test/holed"))
            await asyncio.to_thread(gate.wait_until_reached)
            blocks.take(str({"root": bundle.cid, "member": parts[1][0]}[hole]))
            gate.open()
            with pytest.raises(NodeTimeout if hole == "member" else BlocksMissing):
                await storing
            assert await node.pin_status(str(bundle.cid)) is None


async def test_a_hole_under_a_pin(node: KuboNode, blocks: Blockstore) -> None:
    """It stays pinned; only the walk tells."""
    data = os.urandom(3 * MIB)
    cid = (await node.add(source(data), pin_name="on-api/test/holed")).cid
    assert (await walk(node, cid))[0] == 4
    blocks.take([part.cid for part in build_file(data).walk()][2])
    assert await node.pin_status(cid) is not None
    with pytest.raises((CarError, DagError, NodeError)):
        await walk(node, cid)


async def test_a_wrong_block(node: KuboNode, blocks: Blockstore) -> None:
    """Kubo believes its disk and serves it; the walk hashes every block."""
    data = os.urandom(3 * MIB)
    cid = (await node.add(source(data), pin_name="on-api/test/wrong")).cid
    leaf = [part.cid for part in build_file(data).walk()][1]
    block = bytearray(blocks.take(leaf))
    block[500] ^= 1
    blocks.put(leaf, bytes(block))
    with pytest.raises(CarError, match="does not match its CID"):
        await walk(node, cid)


async def test_a_block_that_nobody_can_read(node: KuboNode, blocks: Blockstore) -> None:
    """Of the codec it says it has, by its hash, and yet none: refused, not called missing."""
    noise = b"\xff is no CBOR " + os.urandom(8)
    cid = str(Cid(DAG_CBOR, 0x12, hashlib.sha256(noise).digest()))
    blocks.put(cid, noise)
    with pytest.raises(NodeError) as caught:
        await node.pin(cid, name="on-api/test/noise", fetch=False)
    assert not isinstance(caught.value, BlocksMissing)
    assert await node.pin_status(cid) is None


DONE = line(Pins=[CID])


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (says(b""), NodeTruncated),
        (says(line(Progress=1, Bytes=5)), NodeTruncated),  # the reason is in a trailer
        (says(line(Progress=1)[:-3]), NodeTruncated),
        (says(DONE, length=len(DONE) + 10), NodeTruncated),
        (says(b"noise\n"), NodeError),
        (says(b"[1]\n"), NodeError),
        (says(b"{" + b" " * 100_000), NodeTruncated),
        (says(line(Message="no space left on device", Type="error")), InsufficientStorage),
        (says(line(Message="ipld: x was not found locally", Type="error")), BlocksMissing),
        (says(b"no", status="500 Oh"), NodeError),
        (hangs, NodeError),
        (hangs_up, NodeError),
    ],
)
async def test_answers_to_a_pin(answer: Exchange, error: type[Exception]) -> None:
    """None but the good one is believed; each fault has its error, in bounded time."""
    async with faulty_node({PIN_ADD: answer}) as settings, KuboNode(settings) as node:
        async with asyncio.timeout(5):
            with pytest.raises(error):
                await node.pin(CID, name="on-api/test/fault", fetch=False)


async def test_the_good_answer_to_a_pin() -> None:
    """Progress is heard as it comes."""
    heard: list[DagStat] = []
    good = says(line(Progress=1, Bytes=5) + line(Progress=2, Bytes=9) + DONE)
    async with faulty_node({PIN_ADD: good}) as settings, KuboNode(settings) as node:
        stat = await node.pin(CID, name="on-api/test/good", fetch=True, progress=heard.append)
    assert heard == [DagStat(5, 1), DagStat(9, 2)]
    assert stat == heard[-1]


@pytest.mark.parametrize(
    "answer", [says(b""), says(line(DagStats=[])), says(b"{}\n"), hangs, hangs_up]
)
async def test_answers_to_a_walk(answer: Exchange) -> None:
    """What is no sum is no success."""
    async with faulty_node({DAG_STAT: answer}) as settings, KuboNode(settings) as node:
        async with asyncio.timeout(5):
            with pytest.raises(NodeError):
                await node.dag_stat(CID)


async def test_garbage_that_could_not_be_removed() -> None:
    """Is told."""
    answer = says(line(Key={"/": CID}) + line(Error="could not remove"))
    async with faulty_node({GC: answer}) as settings, KuboNode(settings) as node:
        with pytest.raises(NodeError):
            await node.collect_garbage()
