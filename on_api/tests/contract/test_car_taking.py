"""CARs that are given, onto a real Kubo: of both versions, with any number of roots; and those that
are meant to hurt."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from on_api.core.errors import BadCar, PayloadTooLarge
from on_api.core.ipfs.formats.car import (
    MAX_HEADER_BYTES,
    MAX_PADDING_BYTES,
    car_header,
    car_section,
)
from on_api.core.ipfs.formats.cid import DAG_PB, RAW, Cid, varint
from on_api.core.ipfs.formats.dag import DAG_CBOR, DAG_JSON
from on_api.core.ipfs.kubo.control import KuboNode
from on_api.core.ipfs.port import DagStat
from on_api.core.ipfs.retrieval import TakenCar, take_car
from on_api.core.settings import Settings
from on_api.tests.conftest import RPC_SECRET, Kubo
from on_api.tests.testing.dags import block_of, car_of, car_with, linking, tree

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
PRAGMA = bytes.fromhex("0aa16776657273696f6e02")


@pytest.fixture
async def node(kubo: Kubo) -> AsyncIterator[KuboNode]:
    """Where it has to get to."""
    async with KuboNode(Settings(_env_file=None, ipfs=kubo.ipfs), RPC_SECRET) as made:
        yield made


async def pieces(data: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    """As a client sends it."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def take(node: KuboNode, data: bytes, **more: Any) -> TakenCar:
    """All of it."""
    return await take_car(node, pieces(data), **more)


def version_2(
    inner: bytes,
    *,
    padding: int = 0,
    index: bytes = b"",
    offset: int | None = None,
    size: int | None = None,
    index_offset: int | None = None,
) -> bytes:
    """A CARv2 around a CARv1; any of its numbers may lie."""
    begins = 51 + padding if offset is None else offset
    length = len(inner) if size is None else size
    where = index_offset if index_offset is not None else (begins + length if index else 0)
    head = PRAGMA + bytes(16) + struct.pack("<3Q", begins, length, where)
    return head + bytes(padding) + inner + index


async def test_a_car_of_either_version(node: KuboNode) -> None:
    """Whatever stands around the blocks. Nothing is pinned: that is its importer's business."""
    for number in range(4):
        root, blocks = tree()
        plain = car_of(root, blocks)
        data = [
            plain,
            version_2(plain),
            version_2(plain, padding=1000, index=os.urandom(500)),
            version_2(plain, index=bytes(10), index_offset=51 + len(plain) + 5),
        ][number]
        size = sum(map(len, blocks.values()))
        taken = await take(node, data, expected_roots=[str(root)], max_bytes=size)
        whole = DagStat(size, len(blocks))
        assert taken == TakenCar([(str(root), whole)], len(blocks), size)
        assert [await node.block(str(cid)) for cid in blocks] == list(blocks.values())
        assert await node.pin_status(str(root)) is None


async def test_blocks_in_any_order(node: KuboNode) -> None:
    """And more of them than the root needs; two roots, one named twice, and equal blocks."""
    (one, first), (two, second) = tree(), tree()
    blocks = [*first.items(), *second.items(), block_of(os.urandom(10)), *first.items()]
    blocks.reverse()
    taken = await take(node, car_with([one, two, one], blocks))
    assert [cid for cid, _ in taken.roots] == [str(one), str(two)]
    assert [stat.blocks for _, stat in taken.roots] == [len(first), len(second)]
    assert taken.blocks == len(blocks)


async def test_what_was_here_already(node: KuboNode) -> None:
    """Need not be in the CAR: the DAG has to be whole afterwards."""
    root, blocks = tree()
    (last, _), rest = list(blocks.items())[-1], dict(list(blocks.items())[:-1])
    with pytest.raises(BadCar, match=str(last)):
        await take(node, car_with([root], rest.items()))
    await take(node, car_with([last], [(last, blocks[last])]))
    taken = await take(node, car_with([root], rest.items()))
    assert taken.roots[0][1].blocks == len(blocks)
    assert (await take(node, car_header(root))).blocks == 0


async def test_identity_cids(node: KuboNode) -> None:
    """Are no blocks, may be written as some, and can be roots."""
    inline = Cid(RAW, 0, b"inline")
    root = linking(inline)
    taken = await take(node, car_with([root[0], inline], [root, (inline, b"inline")]))
    assert taken.blocks == 1
    assert taken.roots == [(str(cid), await node.dag_stat(str(cid))) for cid in (root[0], inline)]
    with pytest.raises(BadCar):
        await take(node, car_with([root[0]], [root, (inline, b"another")]))


async def test_the_roots_that_were_expected(node: KuboNode) -> None:
    """And no others."""
    root, blocks = tree()
    other, _ = tree()
    with pytest.raises(BadCar, match="roots"):
        await take(node, car_of(root, blocks), expected_roots=[str(other)])
    assert await node.block(str(root)) is None


async def test_more_than_was_allowed(node: KuboNode) -> None:
    """Ends at the block that passes the limit."""
    root, blocks = tree()
    size = sum(map(len, blocks.values()))
    with pytest.raises(PayloadTooLarge):
        await take(node, car_of(root, blocks), max_bytes=size - 1)


async def test_a_client_that_goes_away(node: KuboNode) -> None:
    """Its own error comes out; the node is well."""

    class GoneError(Exception):
        pass

    root, blocks = tree()

    async def breaking() -> AsyncIterator[bytes]:
        yield car_of(root, blocks)[:5000]
        raise GoneError

    with pytest.raises(GoneError):
        await take_car(node, breaking())
    assert (await take(node, car_of(root, blocks))).blocks == len(blocks)


ROOT, BLOCKS = tree()
GOOD = car_of(ROOT, BLOCKS)
WRONG = block_of(b"what nobody stores: " + os.urandom(16))


def one(codec: int, data: bytes) -> bytes:
    """A CAR of one block."""
    block = block_of(data, codec)
    return car_with([block[0]], [block])


def many_roots(count: int) -> Sequence[Cid]:
    """Different ones."""
    return [block_of(number.to_bytes(4, "big"))[0] for number in range(count)]


HOSTILE = {
    "nothing": b"",
    "words": b"<!doctype html><title>Sorry</title>",
    "noise": os.urandom(100_000),
    "no root": car_header(),
    "no root, but blocks": car_with([], BLOCKS.items()),
    "a root that isn't there": car_header(WRONG[0]),
    "roots without blocks": car_header(*many_roots(1000)),
    "more roots than a header holds": car_header(*many_roots(250)) * 8,
    "a header of terabytes": varint(2**42) + b"\xa2",
    "a header over its bound": varint(MAX_HEADER_BYTES + 1) + bytes(MAX_HEADER_BYTES + 1),
    "a number without an end": b"\xff" * 100_000,
    "a block of terabytes": car_header(ROOT) + varint(2**42),
    "a block without a length": GOOD + b"\x00",
    "a block over 2 MiB": one(RAW, bytes(2 * MIB + 1)),
    "a block that is cut": GOOD[:-1],
    "a CID that is cut": car_header(ROOT) + varint(10) + ROOT.raw[:10],
    "trailing bytes": GOOD + b"more",
    "a wrong block": GOOD + car_section(WRONG[0], b"another"),
    "an unknown hash": car_header(ROOT) + car_section(Cid(RAW, 0x1E, bytes(32)), b"x"),
    "an identity CID that lies": car_header(ROOT) + car_section(Cid(RAW, 0, b"x"), b"y"),
    "missing blocks": car_with([ROOT], [(ROOT, BLOCKS[ROOT])]),
    "DAG-CBOR nested a million deep": one(DAG_CBOR, b"\x81" * MIB + b"\x00"),
    "DAG-CBOR that announces 2^62 items": one(DAG_CBOR, b"\x9b\x40" + bytes(7)),
    "DAG-CBOR that no encoder writes": one(DAG_CBOR, b"\x18\x00"),
    "DAG-JSON nested deep": one(DAG_JSON, b"[" * MIB + b"]" * MIB),
    "plain CBOR nested deep": one(0x51, b"\x81" * MIB + b"\x00"),
    "plain JSON nested deep": one(0x0200, b"[" * MIB + b"]" * MIB),
    "dag-pb that isn't": one(DAG_PB, b"\xff\xff"),
    "a codec that nobody knows": one(0x99, b"x"),
    "version 2 that is cut": version_2(GOOD)[:40],
    "version 2 without blocks": version_2(b""),
    "version 2 that begins within itself": version_2(GOOD, offset=10),
    "version 2 that begins far away": version_2(GOOD, offset=2**60),
    "version 2 with too much padding": version_2(GOOD, padding=MAX_PADDING_BYTES + 1),
    "version 2 shorter than it says": version_2(GOOD, size=len(GOOD) + 1),
    "version 2 of a huge size": version_2(GOOD, size=2**63),
    "version 2 longer than it says": version_2(GOOD, size=len(GOOD) - 1),
    "version 2 with more behind it": version_2(GOOD) + b"more",
    "version 2 with its index within": version_2(GOOD, index_offset=60),
    "version 2 with an endless index": version_2(GOOD, index=bytes(len(GOOD) + MIB + 1)),
    "version 2 within version 2": version_2(version_2(GOOD)),
    "version 3": b"\x0a" + PRAGMA[1:-1] + b"\x03" + GOOD,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile(node: KuboNode, name: str) -> None:
    """A clear error for each; memory is bounded, nothing wrong is stored, the node is well."""
    data = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(BadCar) as caught:
            await take(node, data)
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()
    assert caught.value.details
    assert await node.block(str(WRONG[0])) is None
    assert (await node.version()).tested


@pytest.mark.parametrize(
    "data",
    [
        one(DAG_CBOR, b"\x9a" + MIB.to_bytes(4, "big") + bytes(MIB)),
        one(DAG_PB, b"\x08\x00" * MIB),
    ],
    ids=["DAG-CBOR", "dag-pb"],
)
async def test_a_block_of_a_million_values(node: KuboNode, data: bytes) -> None:
    """Is refused before the node gets it: reading it would take both of us long."""
    with pytest.raises(BadCar, match="too many"):
        await take(node, data)


async def test_a_long_one(node: KuboNode) -> None:
    """Memory does not grow with it."""
    leaves = [block_of(os.urandom(16) + bytes(MIB - 16)) for _ in range(40)]
    root = linking(*(cid for cid, _ in leaves))

    async def stream() -> AsyncIterator[bytes]:
        yield car_with([root[0]], [root])
        for leaf in leaves:
            yield car_section(*leaf)

    tracemalloc.start()
    try:
        taken = await take_car(node, stream())
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()
    assert taken.roots[0][1].blocks == 41
