"""CARs as strangers send them: cut anywhere, in pieces of any size, damaged, or meant to hurt."""

from __future__ import annotations

import asyncio
import hashlib
import tracemalloc
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from on_api.core.ipfs.formats.car import (
    MAX_BLOCK_BYTES,
    MAX_HEADER_BYTES,
    CarError,
    CarReader,
    car_header,
    car_section,
)
from on_api.core.ipfs.formats.cid import RAW, Cid, varint

Blocks = Sequence[tuple[Cid, bytes]]

HASHES = {
    0x11: "sha1",
    0x12: "sha256",
    0x13: "sha512",
    0x14: "sha3_512",
    0x15: "sha3_384",
    0x16: "sha3_256",
    0x17: "sha3_224",
    0xB240: "blake2b",
}


def block_of(data: bytes, code: int = 0x12) -> tuple[Cid, bytes]:
    """A raw block under any hash function."""
    return Cid(RAW, code, hashlib.new(HASHES[code], data).digest()), data


blocks_of_any_kind = st.lists(
    st.builds(block_of, st.binary(max_size=300), st.sampled_from(sorted(HASHES))), max_size=6
)


def car(blocks: Blocks, roots: Sequence[Cid] | None = None) -> bytes:
    """All of it, in one piece."""
    named = [cid for cid, _ in blocks[:1]] if roots is None else roots
    return car_header(*named) + b"".join(car_section(*block) for block in blocks)


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    """A stream, with empty pieces in between."""
    for start in range(0, len(data), size):
        yield data[start : start + size]
        yield b""


def read(data: bytes, size: int = 65536) -> tuple[Sequence[Cid], Blocks]:
    """Roots and blocks."""

    async def read_all() -> tuple[Sequence[Cid], Blocks]:
        reader = CarReader(pieces(data, size))
        blocks = [block async for block in reader.blocks()]
        return reader.roots, blocks

    return asyncio.run(read_all())


@given(blocks_of_any_kind, st.integers(1, 400))
def test_what_is_written_is_read(blocks: Blocks, size: int) -> None:
    """In pieces of any size, with every hash function that is known."""
    roots, found = read(car(blocks), size)
    assert list(roots) == [cid for cid, _ in blocks[:1]]
    assert found == blocks


@given(st.lists(st.binary(max_size=50).map(block_of), min_size=1, max_size=4), st.data())
def test_cut_anywhere(blocks: Blocks, choice: st.DataObject) -> None:
    """An error, unless exactly between two blocks: there only following the DAG can tell."""
    whole = car(blocks)
    ends = {len(car(blocks[:count], [blocks[0][0]])) for count in range(len(blocks) + 1)}
    cut = choice.draw(st.integers(0, len(whole)))
    if cut in ends:
        _, found = read(whole[:cut])
        assert found == blocks[: len(found)]
    else:
        with pytest.raises(CarError):
            read(whole[:cut])


@given(st.lists(st.binary(max_size=50).map(block_of), min_size=1, max_size=3), st.data())
def test_a_changed_byte(blocks: Blocks, choice: st.DataObject) -> None:
    """An error, or blocks that still are what their CIDs say."""
    damaged = bytearray(car(blocks))
    place = choice.draw(st.integers(0, len(damaged) - 1))
    damaged[place] ^= choice.draw(st.integers(1, 255))
    try:
        _, found = read(bytes(damaged))
    except CarError:
        return
    for cid, data in found:
        assert hashlib.new(HASHES[cid.hash_code], data).digest() == cid.digest


@given(st.binary(max_size=300))
def test_noise(data: bytes) -> None:
    """By `CarError` alone."""
    with pytest.raises(CarError):
        read(data)


def header(body: bytes) -> bytes:
    """A header of one's own making."""
    return varint(len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        header(b"\xa2\x65roots\x81\x1a\x3b\x9a\xca\x00\x67version\x01"),  # 10^9, as a root
        header(b"\xa2\x65roots\x1a\x3b\x9a\xca\x00\x67version\x01"),  # as the roots
        header(b"\xa2\x65roots\x80\x67version\x02"),
        header(b"\xa1\x67version\x01"),
        header(b"\x81" * (MAX_HEADER_BYTES - 1) + b"\0"),
        header(b"\xa2\x65roots\x81\x41\x01\x67version\x01"),
        varint(MAX_HEADER_BYTES + 1),
        b"\xff" * 10,
        car([]) + varint(2**40),
        car([]) + b"\0",
        car([(Cid(RAW, 0x1E, bytes(32)), b"of a hash that is not known here")]),
        car([(Cid(RAW, 0x12, bytes(32)), b"another")]),
        car([(block_of(b"x")[0], b"y")]),
    ],
)
def test_what_is_refused(data: bytes) -> None:
    """Without reserving what a length claims."""
    tracemalloc.start()
    try:
        with pytest.raises(CarError):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_the_largest_block() -> None:
    """As large as other nodes take, and a byte more."""
    assert len((read(car([block_of(bytes(MAX_BLOCK_BYTES))])))[1]) == 1
    with pytest.raises(CarError):
        read(car([block_of(bytes(MAX_BLOCK_BYTES + 1))]))


@pytest.mark.anyio
async def test_many_empty_pieces() -> None:
    """Are nothing, and no end."""

    async def mostly_nothing() -> AsyncIterator[bytes]:
        for _ in range(5000):
            yield b""
        yield car([block_of(b"at last")])

    assert [block async for _, block in CarReader(mostly_nothing()).blocks()] == [b"at last"]
