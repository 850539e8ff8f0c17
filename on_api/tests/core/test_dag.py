"""Links of blocks and whole DAGs, by encoders of the tests' own; damage of any kind is told, in
bounded time, and by one kind of error."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import AsyncIterator, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from on_api.core.ipfs.formats.cid import DAG_PB, RAW, Cid, varint
from on_api.core.ipfs.formats.dag import (
    DAG_CBOR,
    DAG_JSON,
    DagError,
    TooComplexError,
    UnknownCodecError,
    links_of,
)
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.tests.testing.dags import follow

CODECS = [RAW, DAG_PB, DAG_CBOR, DAG_JSON, 0x51, 0x0200]


def cid_of(block: bytes, codec: int = RAW) -> Cid:
    """The block's CID."""
    return Cid(codec, 0x12, hashlib.sha256(block).digest())


cids = st.one_of(
    st.builds(cid_of, st.binary(max_size=8), st.sampled_from(CODECS)),
    st.builds(Cid, st.just(RAW), st.just(0), st.binary(max_size=40)),
)


class Link:
    """A CID within data."""

    def __init__(self, cid: Cid) -> None:
        self.cid = cid

    def __repr__(self) -> str:
        return f"Link({self.cid})"


names = st.text(min_size=1, max_size=5).filter(lambda name: name != "/")
"""DAG-JSON keeps "/" for itself: an object that has it is a link or bytes."""
data = st.recursive(
    st.one_of(
        st.builds(Link, cids),
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.text(max_size=30),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=30), st.dictionaries(names, inner)),
    max_leaves=40,
)


def links_in(value: object) -> Iterator[Cid]:
    """In the order in which they are written."""
    if isinstance(value, Link):
        yield value.cid
    elif isinstance(value, dict):
        for inner in value.values():
            yield from links_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from links_in(inner)


def cbor(value: object) -> bytes:
    """DAG-CBOR, keys in the order given."""
    if isinstance(value, Link):
        return b"\xd8\x2a" + _head(2, len(value.cid.raw) + 1) + b"\0" + value.cid.raw
    if value is None or isinstance(value, bool):
        return {None: b"\xf6", True: b"\xf5", False: b"\xf4"}[value]
    if isinstance(value, int):
        return _head(0, value) if value >= 0 else _head(1, -1 - value)
    if isinstance(value, float):
        return b"\xfb" + struct.pack(">d", value)
    if isinstance(value, str):
        return _head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return _head(4, len(value)) + b"".join(map(cbor, value))
    assert isinstance(value, dict)
    return _head(5, len(value)) + b"".join(cbor(k) + cbor(v) for k, v in value.items())


def _head(major: int, number: int) -> bytes:
    for width, code in ((1, 24), (2, 25), (4, 26), (8, 27)):
        if number < 24:
            return bytes([major << 5 | number])
        if number < 1 << (8 * width):
            return bytes([major << 5 | code]) + number.to_bytes(width, "big")
    raise AssertionError


def as_json(value: object) -> object:
    """For `json.dumps`: DAG-JSON."""
    if isinstance(value, Link):
        return {"/": str(value.cid)}
    if isinstance(value, dict):
        return {name: as_json(inner) for name, inner in value.items()}
    return [as_json(inner) for inner in value] if isinstance(value, list) else value


def field(number: int, value: bytes) -> bytes:
    """One length-delimited field of protobuf."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def pb(links: Iterable[Cid], payload: bytes = b"", name: bytes = b"a") -> bytes:
    """DAG-PB, as its specification orders it."""
    written = [
        field(2, field(1, cid.raw) + field(2, name) + varint(3 << 3) + varint(2**40))
        for cid in links
    ]
    return b"".join(written) + field(1, payload)


@given(st.lists(cids, max_size=20), st.binary(max_size=50))
def test_links_of_dag_pb(links: list[Cid], payload: bytes) -> None:
    """In order, repeated ones repeated."""
    assert links_of(DAG_PB, pb(links, payload)) == links


@given(data)
def test_links_of_dag_cbor(value: object) -> None:
    """However deep."""
    assert links_of(DAG_CBOR, cbor(value)) == list(links_in(value))


@given(data)
def test_links_of_dag_json(value: object) -> None:
    """However deep."""
    assert links_of(DAG_JSON, json.dumps(as_json(value)).encode()) == list(links_in(value))


@pytest.mark.parametrize("codec", [RAW, 0x51, 0x0200])
def test_codecs_without_links(codec: int) -> None:
    """Whatever their blocks look like."""
    assert links_of(codec, pb([cid_of(b"x")])) == []


def test_a_codec_that_is_not_known() -> None:
    """Is said to be so: the block may well be good."""
    with pytest.raises(UnknownCodecError, match="0x78"):
        links_of(0x78, b"")


@given(st.sampled_from([DAG_PB, DAG_CBOR, DAG_JSON]), st.binary(max_size=200))
def test_noise(codec: int, block: bytes) -> None:
    """Either links or `DagError`."""
    with contextlib.suppress(DagError):
        links_of(codec, block)


@given(data, st.lists(cids, min_size=1), st.data())
def test_damage(value: object, links: list[Cid], choice: st.DataObject) -> None:
    """A byte changed, or the end cut off: either links or `DagError`."""
    for codec, block in (
        (DAG_PB, pb(links)),
        (DAG_CBOR, cbor(value)),
        (DAG_JSON, json.dumps(as_json(value)).encode()),
    ):
        damaged = bytearray(block[: choice.draw(st.integers(0, len(block)))])
        if damaged:
            place = choice.draw(st.integers(0, len(damaged) - 1))
            damaged[place] = choice.draw(st.integers(0, 255))
        with contextlib.suppress(DagError):
            links_of(codec, bytes(damaged))


@pytest.mark.parametrize(
    ("codec", "block"),
    [
        (DAG_PB, field(2, field(2, b"no hash"))),
        (DAG_PB, field(2, field(1, b"no cid"))),
        (DAG_PB, field(2, b"")),
        (DAG_PB, pb([cid_of(b"x")])[:-3] + b"\xff"),
        (DAG_PB, varint(2 << 3 | 2) + varint(2**62)),
        (DAG_CBOR, b""),
        (DAG_CBOR, b"\x9f\xff"),  # of indefinite length
        (DAG_CBOR, b"\x9b" + b"\xff" * 8),  # 2^64 items that are not there
        (DAG_CBOR, b"\x5b" + b"\xff" * 8),  # as many bytes
        (DAG_CBOR, b"\xbb" + b"\xff" * 8),
        (DAG_CBOR, b"\xd8\x2a\x40"),  # a link without anything
        (DAG_CBOR, b"\xd8\x2a\x40\x00"),
        (DAG_CBOR, b"\xd8\x2a\xd8\x2a\x41\x00"),
        (DAG_CBOR, b"\xc1\x00"),  # another tag
        (DAG_CBOR, b"\x00\x00"),  # two items
        (DAG_JSON, b'{"/": "no cid"}'),
        (DAG_JSON, b"["),
        (DAG_JSON, b"\xff"),
        (DAG_JSON, b"[" * 100_000 + b"]" * 100_000),
    ],
)
def test_what_is_refused(codec: int, block: bytes) -> None:
    """By `DagError` alone."""
    with pytest.raises(DagError):
        links_of(codec, block)


@pytest.mark.parametrize(
    ("codec", "block"),
    [
        (DAG_CBOR, b"\x81" * 1_000_000 + b"\x00"),
        (DAG_CBOR, b"\x9a" + (1_000_000).to_bytes(4, "big") + bytes(1_000_000)),
        (DAG_PB, b"\x08\x00" * 1_000_000),
    ],
    ids=["deep", "wide", "fields"],
)
def test_what_nobody_means_well_by(codec: int, block: bytes) -> None:
    """Too deep or too wide: told by a small part of the block, and for whoever only wants to know
    what is missing no damage."""
    with pytest.raises(TooComplexError):
        links_of(codec, block)
    assert issubclass(TooComplexError, UnknownCodecError)


def test_what_is_still_followed() -> None:
    """Far deeper and wider than what programs write."""
    deep = b"\x81" * 1000 + cbor(Link(cid_of(b"x")))
    assert links_of(DAG_CBOR, deep) == [cid_of(b"x")]
    wide = cbor([0] * 100_000 + [Link(cid_of(b"x"))])
    assert links_of(DAG_CBOR, wide) == [cid_of(b"x")]


@pytest.mark.anyio
async def test_following_a_file() -> None:
    """Every block once, also one that is referred to again; each one missing, added or exchanged
    is told."""
    zeros = build_file(bytes(3 * 1024 * 1024) + b"end")
    blocks = list({Cid.from_text(node.cid): node.block for node in zeros.walk()}.items())
    root = blocks[0][0]
    assert await follow(root, stream(blocks)) == (3, sum(len(block) for _, block in blocks))
    for place in range(len(blocks)):
        with pytest.raises(DagError, match="missing"):
            await follow(root, stream(blocks[:place] + blocks[place + 1 :]))
    with pytest.raises(DagError, match="do not belong"):
        await follow(root, stream([*blocks, blocks[-1]]))
    with pytest.raises(DagError, match="missing"):
        await follow(root, stream([blocks[0], blocks[-1], *blocks[1:-1]]))
    with pytest.raises(DagError, match="missing"):
        await follow(root, stream([]))


@pytest.mark.anyio
async def test_following_over_inline_blocks() -> None:
    """An identity CID is no block of its own, but what it links to is."""
    leaf = b"leaf"
    inline = Cid(DAG_CBOR, 0, cbor([Link(cid_of(leaf)), Link(Cid(RAW, 0, b"inner"))]))
    top = cbor({"a": Link(inline), "b": Link(cid_of(leaf))})
    root = cid_of(top, DAG_CBOR)
    blocks = [(root, top), (cid_of(leaf), leaf)]
    assert await follow(root, stream(blocks)) == (2, len(top) + len(leaf))
    assert await follow(Cid(RAW, 0, b"all of it"), stream([])) == (0, 0)
    with pytest.raises(DagError):
        await follow(root, stream(blocks[:1]))


@pytest.mark.anyio
async def test_following_a_long_chain() -> None:
    """As deep as it is long: nothing recurses."""
    blocks = [(cid_of(b"end"), b"end")]
    for _ in range(20_000):
        block = cbor([Link(blocks[-1][0])])
        blocks.append((cid_of(block, DAG_CBOR), block))
    blocks.reverse()
    assert (await follow(blocks[0][0], stream(blocks)))[0] == 20_001


async def stream(blocks: Iterable[tuple[Cid, bytes]]) -> AsyncIterator[tuple[Cid, bytes]]:
    """As they come from a CAR."""
    for block in blocks:
        yield block
