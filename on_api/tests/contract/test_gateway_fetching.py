"""DAGs from gateways that nobody needs to trust, onto a real Kubo: whole, resumed, and never with a
block that isn't what was asked for."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from on_api.core.errors import OnApiError, PayloadTooLarge
from on_api.core.ipfs import retrieval
from on_api.core.ipfs.formats.car import car_header
from on_api.core.ipfs.formats.cid import DAG_PB, RAW, Cid, varint
from on_api.core.ipfs.formats.dag import DAG_CBOR
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.ipfs.kubo.control import KuboNode
from on_api.core.ipfs.port import DagStat
from on_api.core.ipfs.retrieval import FetchedDag, GatewayFetcher
from on_api.core.net.errors import SourceMalformed, SourceMissing, SourceUnavailable
from on_api.core.settings import Settings
from on_api.tests.conftest import RPC_SECRET, Kubo
from on_api.tests.testing.dags import Blocks, block_of, car_of, car_with, linking, tree
from on_api.tests.testing.foreign import HTML, Asked, Reply, Service, outbound, says, service
from on_api.tests.testing.network import Peer

pytestmark = pytest.mark.anyio

CAR = {"Content-Type": "application/vnd.ipld.car; version=1; order=dfs; dups=n"}
RAW_BLOCK = {"Content-Type": "application/vnd.ipld.raw"}
TRUNCATED = b"[Gateway Error: CAR stream truncated: block was not found locally]"
MIB = 1024 * 1024


@pytest.fixture
async def node(kubo: Kubo) -> AsyncIterator[KuboNode]:
    """Where it has to get to."""
    async with KuboNode(Settings(_env_file=None, ipfs=kubo.ipfs), RPC_SECRET) as made:
        yield made


class Gateway:
    """A trustless gateway that has some blocks."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.gives_cars = True

    def __call__(self, asked: Asked) -> Reply:
        """See the specification of trustless gateways."""
        cid = Cid.from_text(asked.path.removeprefix("/ipfs/"))
        if cid not in self.blocks:
            return says({}, "404 Not Found")
        if asked.query["format"] == "raw":
            return Reply(self.blocks[cid], headers=RAW_BLOCK)
        assert asked.query["dag-scope"] == "all"
        assert asked.headers["accept"].startswith("application/vnd.ipld.car")
        if not self.gives_cars:
            return says({}, "400 Bad Request")
        return Reply(car_of(cid, self.blocks), headers=CAR)


async def fetch(
    node: KuboNode, there: Service, root: Cid, more: dict[str, Any] | None = None, **changes: Any
) -> FetchedDag:
    """Fetch from a service, with quick limits."""
    async with outbound(**changes) as calls:
        return await GatewayFetcher(node, calls, there.url).fetch(str(root), **(more or {}))


async def is_whole(node: KuboNode, root: Cid, blocks: Blocks) -> bool:
    """Whether the node has every block, unchanged, and no pin on it."""
    here = [await node.block(str(cid)) for cid in blocks]
    return here == list(blocks.values()) and await node.pin_status(str(root)) is None


async def test_a_whole_dag(node: KuboNode) -> None:
    """In one request; then it is here, and is not fetched again. It is not pinned: that is its
    importer's business."""
    root, blocks = tree()
    size = sum(map(len, blocks.values()))
    heard: list[DagStat] = []
    async with service(Gateway(blocks)) as there:
        done = await fetch(node, there, root, {"progress": heard.append})
        assert done == FetchedDag(len(blocks), size, len(blocks), size)
        assert there.paths() == [f"/ipfs/{root}"]
        again = await fetch(node, there, root)
        assert again == FetchedDag(len(blocks), size, 0, 0)
        assert len(there.asked) == 1
    assert await is_whole(node, root, blocks)
    assert await node.dag_stat(str(root)) == DagStat(size, len(blocks))
    assert heard == sorted(heard, key=lambda stat: stat.blocks)
    assert heard[-1] == DagStat(size, len(blocks))


async def test_a_file(node: KuboNode) -> None:
    """Of several blocks, equal ones among them."""
    parts = list(build_file(bytes(2 * MIB) + os.urandom(MIB)).walk())
    blocks = {Cid.from_text(part.cid): part.block for part in parts}
    async with service(Gateway(blocks)) as there:
        done = await fetch(node, there, Cid.from_text(parts[0].cid))
    assert done.blocks == done.fetched_blocks == 3


async def test_links_within_links(node: KuboNode) -> None:
    """A block that is linked to twice comes once; identity CIDs hold their block themselves."""
    leaf = block_of(b"leaf" + os.urandom(8))
    inner = linking(leaf[0])
    inline = Cid(DAG_CBOR, 0, inner[1])
    root = linking(leaf[0], inline, leaf[0], Cid(RAW, 0, b"inner"))
    blocks = dict([root, leaf])
    async with service(Gateway(blocks)) as there:
        assert (await fetch(node, there, root[0])).blocks == 2
        assert (await fetch(node, there, Cid(RAW, 0, b"all of it"))).blocks == 0
    assert await is_whole(node, root[0], blocks)


@pytest.mark.parametrize("ending", [b"", TRUNCATED, b"\xff"])
@pytest.mark.parametrize("announced", [True, False], ids=["cut", "short"])
async def test_going_on_after_a_cut(node: KuboNode, announced: bool, ending: bytes) -> None:
    """Wherever the CAR breaks off, and whether HTTP tells it or not: what has come is kept, and
    only what is missing is asked for."""
    gateway = Gateway({})
    cuts: list[int] = []

    def cutting(asked: Asked) -> Reply:
        reply = gateway(asked)
        if not cuts:
            return reply
        cut = cuts.pop()
        length = len(reply.body) if announced else None
        return Reply(reply.body[:cut] + ending, headers=reply.headers, length=length)

    async with service(cutting) as there:
        for place in (0, 30, 200, 1500, 3000, 6000, 13000):
            root, gateway.blocks = tree()
            cut = place
            if ending == TRUNCATED:  # written behind whole blocks
                some = list(gateway.blocks.items())[: 1 + place // 1000]
                cut = len(car_with([root], some))
            cuts.append(cut)
            before = len(there.asked)
            done = await fetch(node, there, root)
            assert done.blocks == done.fetched_blocks == len(gateway.blocks)
            assert await is_whole(node, root, gateway.blocks)
            again = [asked.path for asked in there.asked[before + 1 :]]
            if cut > 200:  # the root has come
                assert again
                assert f"/ipfs/{root}" not in again
            assert len(again) == len(set(again))


async def test_a_gateway_that_always_breaks_off(node: KuboNode) -> None:
    """Is given up after some tries; as long as each brings a block it is not."""
    root, blocks = tree()
    gateway = Gateway(blocks)

    def cutting(asked: Asked) -> Reply:
        reply = gateway(asked)
        return Reply(reply.body[:keep], headers=reply.headers, length=len(reply.body))

    keep = 3000
    async with service(cutting) as there:
        assert (await fetch(node, there, root)).blocks == len(blocks)
    keep, (root, gateway.blocks) = 300, tree()
    async with service(cutting) as there:
        with pytest.raises(SourceUnavailable):
            await fetch(node, there, root)
        assert len(there.asked) < 10
    assert await node.block(str(root)) is not None


async def test_where_there_are_no_cars(node: KuboNode) -> None:
    """Block by block."""
    root, blocks = tree()
    gateway = Gateway(blocks)
    gateway.gives_cars = False
    async with service(gateway) as there:
        assert (await fetch(node, there, root)).fetched_blocks == len(blocks)
    assert await is_whole(node, root, blocks)


async def test_a_busy_gateway(node: KuboNode) -> None:
    """Is asked again when it said so; one that wants to be left alone for long is."""
    root, blocks = tree()
    gateway = Gateway(blocks)
    busy = [says({}, "429 Wait", Retry_After="0"), says({}, "503 Busy")]
    async with service(lambda asked: busy.pop() if busy else gateway(asked)) as there:
        assert (await fetch(node, there, root)).blocks == len(blocks)
    root, gateway.blocks = tree()
    async with service(lambda _: says({}, "429 Wait", Retry_After="3600")) as there:
        with pytest.raises(SourceUnavailable) as caught:
            await fetch(node, there, root)
        assert len(there.asked) == 1
    assert caught.value.headers["Retry-After"] == "3600"


WRONG = block_of(b"another block")
ROOT, BLOCKS = tree()


def with_wrong_block() -> bytes:
    """The second block is not what its CID says."""
    cids = list(BLOCKS)
    return car_with([ROOT], [(ROOT, BLOCKS[ROOT]), (cids[1], b"wrong"), *list(BLOCKS.items())[2:]])


def bad(body: bytes, **more: Any) -> Callable[[Asked], Reply]:
    """A gateway that gives this CAR, whatever is asked."""
    return lambda _: Reply(body, headers=CAR, **more)


DEEP = block_of(b"\x81" * 5000 + b"\x00", DAG_CBOR)
DAMAGED = block_of(b"\xff\xff", DAG_PB)
LARGE = block_of(bytes(2 * MIB + 1))
GIT = block_of(b"blob 0\x00", 0x78)


@pytest.mark.parametrize(
    ("root", "answer", "error"),
    [
        (ROOT, bad(with_wrong_block()), SourceMalformed),
        (ROOT, bad(car_with([ROOT], [WRONG])), SourceMalformed),
        (ROOT, bad(car_with([ROOT], [(ROOT, BLOCKS[ROOT]), WRONG])), SourceMalformed),
        (ROOT, bad(car_with([WRONG[0]], [WRONG])), SourceMalformed),
        (ROOT, bad(car_with([WRONG[0]], [(ROOT, BLOCKS[ROOT])])), SourceMalformed),
        (ROOT, bad(car_with([ROOT], [])), SourceMalformed),
        (ROOT, bad(b""), SourceUnavailable),
        (ROOT, bad(b"\x00" * 1000), SourceUnavailable),
        (ROOT, bad(os.urandom(1000)), SourceUnavailable),
        (ROOT, bad(car_header(ROOT) + varint(2**40)), SourceUnavailable),
        (ROOT, lambda _: HTML, SourceMalformed),
        (ROOT, lambda _: says({}, "404 No"), SourceMissing),
        (ROOT, lambda _: says({}, "500 Oh"), SourceUnavailable),
        (ROOT, lambda _: says({}, "406 No"), OnApiError),
        (ROOT, lambda _: Reply(headers={**CAR, "X": "x" * 200_000}), SourceUnavailable),
        (ROOT, lambda _: Reply(hangs=True), SourceUnavailable),
        (ROOT, bad(b"", pieces=[b"\x01"] * 1000, pause=0.05), SourceUnavailable),
        (DEEP[0], bad(car_with([DEEP[0]], [DEEP])), SourceMalformed),
        (DAMAGED[0], bad(car_with([DAMAGED[0]], [DAMAGED])), SourceMalformed),
        (GIT[0], bad(car_with([GIT[0]], [GIT])), SourceMalformed),
        (LARGE[0], lambda _: Reply(LARGE[1], headers=RAW_BLOCK), SourceMalformed),
        (WRONG[0], lambda _: Reply(b"wrong", headers=RAW_BLOCK), SourceMalformed),
        (WRONG[0], lambda _: Reply(b"", headers=RAW_BLOCK), SourceMalformed),
        (WRONG[0], lambda _: HTML, SourceMalformed),
        (WRONG[0], lambda _: Reply(b"ano", length=13, headers=RAW_BLOCK), SourceUnavailable),
    ],
)  # fmt: skip
async def test_what_is_not_believed(
    node: KuboNode, root: Cid, answer: Callable[[Asked], Reply], error: type[OnApiError]
) -> None:
    """An error for each, in bounded time; nothing of it is kept but what was asked for and
    verified, and the node is well."""
    async with service(answer) as there:
        with pytest.raises(error):
            await fetch(node, there, root, read_timeout=1, block_timeout=1, retries=1)
        assert len(there.asked) < 10
    assert await node.block(str(WRONG[0])) is None
    assert await node.block(str(root)) in {None, BLOCKS.get(root)}
    assert (await node.version()).tested


async def test_blocks_that_belong_to_something_else(node: KuboNode) -> None:
    """Are told at the first one, though their hashes are right; and a CAR is of the root that was
    asked for, whatever its blocks are."""
    root, blocks = tree()
    other, others = tree()
    mixed = [*list(blocks.items())[:2], *others.items()]
    for body, words in (
        (car_with([other], blocks.items()), "different root"),
        (car_with([root], mixed), "not requested"),
    ):
        async with service(bad(body)) as there:
            with pytest.raises(SourceMalformed, match=words):
                await fetch(node, there, root)
            assert len(there.asked) == 1
    assert [await node.block(str(cid)) for cid in others] == [None] * len(others)


async def test_the_same_blocks_again_and_again(
    node: KuboNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some repeat themselves though asked not to; one that does nothing else is given up."""
    monkeypatch.setattr(retrieval, "MAX_REPEATED_BYTES", 50_000)
    root, blocks = tree()
    twice = [each for each in blocks.items() for _ in range(2)]
    async with service(bad(car_with([root], twice))) as there:
        assert (await fetch(node, there, root)).blocks == len(blocks)
    root, blocks = tree()
    flood = [(root, blocks[root])] * 2000
    async with service(bad(car_with([root], flood))) as there:
        with pytest.raises(SourceMalformed, match="same blocks"):
            await fetch(node, there, root)


async def test_more_links_than_anybody_needs(
    node: KuboNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cost memory here, and nothing there."""
    monkeypatch.setattr(retrieval, "MAX_WANTED_BLOCKS", 100)
    links = [block_of(os.urandom(8))[0] for _ in range(101)]
    root = linking(*links)
    async with service(bad(car_with([root[0]], [root]))) as there:
        with pytest.raises(SourceMalformed, match="links"):
            await fetch(node, there, root[0])


async def test_more_than_was_allowed(node: KuboNode) -> None:
    """Ends at the block that passes the limit."""
    root, blocks = tree()
    size = sum(map(len, blocks.values()))
    async with service(Gateway(blocks)) as there:
        with pytest.raises(PayloadTooLarge):
            await fetch(node, there, root, {"max_bytes": size - 1})
        assert (await fetch(node, there, root, {"max_bytes": size})).blocks == len(blocks)


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A Kubo with a gateway, to which nobody is connected."""
    peer = Peer(tmp_path_factory.mktemp("provider"))
    peer.start()
    try:
        yield peer
    finally:
        peer.stop()


async def test_from_a_real_gateway(node: KuboNode, provider: Peer) -> None:
    """Over HTTP alone. A block that it has lost is named; when it has it again, that block alone is
    fetched."""
    data = os.urandom(3 * MIB + 5)
    root = provider.add(data)
    leaf = [part.cid for part in build_file(data).walk()][2]
    provider.blocks.take(leaf)
    there = provider.ipfs.gateway_url
    assert there is not None
    async with outbound() as calls:
        fetcher = GatewayFetcher(node, calls, there)
        with pytest.raises(SourceMissing):
            await fetcher.fetch(root)
        assert provider.add(data) == root
        done = await fetcher.fetch(root)
    assert (done.blocks, done.fetched_blocks, done.fetched_bytes) == (5, 3, 2 * MIB + 5)
    assert (await node.dag_stat(root)).blocks == 5
    assert not await node.peer_count()
