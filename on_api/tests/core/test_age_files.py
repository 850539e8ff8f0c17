"""Age files as on-api writes and reads them: in any pieces, in ranges, damaged in every way, in
constant memory."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from on_api.core.crypto.age import (
    CHUNK_BYTES,
    AgeError,
    BadPayload,
    Decryptor,
    Encryptor,
    Layout,
    RangeDecryptor,
    Span,
    TrailingData,
    Truncated,
    TruncatedHeader,
    TruncatedPayload,
    Unlocked,
    X25519Identity,
    sealed_size,
    unlock,
)
from on_api.core.setting_groups import MIB

pytestmark = pytest.mark.usefixtures("each_aead")

ALICE, BOB, MALLORY = (X25519Identity.generate() for _ in range(3))
SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 150_000]
PLAIN = os.urandom(3 * CHUNK_BYTES + 1234)


def encrypt(plain: bytes, *cuts: int) -> bytes:
    """A file for Alice and Bob, the plaintext given in pieces."""
    writer = Encryptor([ALICE.recipient, BOB.recipient])
    edges = sorted({0, len(plain), *(cut % (len(plain) + 1) for cut in cuts)})
    file = b"".join(writer.update(plain[a:b]) for a, b in pairwise(edges))
    return file + writer.finish()


def decrypt(file: bytes, *cuts: int, identity: X25519Identity = ALICE) -> bytes:
    """The plaintext, the file given in pieces."""
    reader = Decryptor([identity])
    edges = sorted({0, len(file), *(cut % (len(file) + 1) for cut in cuts)})
    plain = b"".join(reader.update(file[a:b]) for a, b in pairwise(edges))
    return plain + reader.finish()


def given_out(file: bytes) -> tuple[bytes, AgeError | None]:
    """What a reader gives out of a file, and how it ends."""
    reader = Decryptor([ALICE])
    plain = b""
    try:
        for start in range(0, len(file), 50_000):
            plain += reader.update(file[start : start + 50_000])
        plain += reader.finish()
    except AgeError as error:
        return plain, error
    return plain, None


def read_range(
    file: bytes, offset: int, length: int, *, from_end: bool = False, step: int = 10**9
) -> bytes:
    """A range of the plaintext, fetching only what the span names."""
    unlocked = unlock(file[:1000], [BOB])
    span = unlocked.layout(len(file)).span(offset, length, from_end=from_end)
    reader = RangeDecryptor(unlocked, span)
    if span.final is not None:
        reader.check_final(file[span.final.start : span.final.end])
    sealed = file[span.chunks.start : span.chunks.end]
    plain = b"".join(reader.update(sealed[a : a + step]) for a in range(0, len(sealed), step))
    return plain + reader.finish()


FILE = encrypt(PLAIN)


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: int) -> None:
    """Round trip at every edge of a chunk; the size is known before."""
    writer = Encryptor([ALICE.recipient])
    expected = writer.sealed_size(size)
    plain = os.urandom(size)
    file = bytes(writer.update(plain) + writer.finish())
    assert file.startswith(writer.start)
    assert len(file) == expected == sealed_size(size, len(writer.start) - 16)
    assert unlock(writer.start, [ALICE]).layout(len(file)).plaintext_size == size
    assert decrypt(file) == plain


@settings(deadline=None, max_examples=60)
@given(
    size=st.sampled_from(SIZES) | st.integers(0, len(PLAIN)),
    writing=st.lists(st.integers(0), max_size=6),
    reading=st.lists(st.integers(0), max_size=6),
)
def test_any_pieces_are_the_same_file(size: int, writing: list[int], reading: list[int]) -> None:
    """However it is cut, on both ways."""
    file = encrypt(PLAIN[:size], *writing)
    assert decrypt(file, *reading) == PLAIN[:size]
    assert decrypt(file, *reading, identity=BOB) == PLAIN[:size]


def test_nothing_of_a_piece_is_read_later() -> None:
    """Its memory may hold something else as soon as it is encrypted."""
    writer = Encryptor([ALICE.recipient])
    edges = [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 7, 2 * CHUNK_BYTES + 8, len(PLAIN)]
    sealed = []
    for start, stop in pairwise(edges):
        piece = bytearray(PLAIN[start:stop])
        sealed.append(writer.update(piece))
        piece[:] = bytes(len(piece))
    assert decrypt(b"".join([*sealed, writer.finish()])) == PLAIN


def test_equal_plaintexts_share_nothing() -> None:
    """Not a block of the two files, and nothing by which to see that they are for the same."""
    first, second = encrypt(PLAIN), encrypt(PLAIN)
    lines = [set(file[:400].splitlines()[1:5]) for file in (first, second)]
    assert {line for line in lines[0] & lines[1] if len(line) > 10} == set()
    blocks = [{file[a : a + 16] for a in range(400, len(file))} for file in (first, second)]
    assert blocks[0] & blocks[1] == set()


def test_misuse() -> None:
    """A finished file takes nothing more."""
    writer = Encryptor([ALICE.recipient])
    writer.finish()
    for again in (writer.finish, lambda: writer.update(b"x")):
        with pytest.raises(ValueError, match="finished"):
            again()


@settings(deadline=None, max_examples=150)
@given(
    offset=st.integers(0, len(PLAIN)),
    length=st.integers(0, len(PLAIN)) | st.integers(0, 100),
    from_end=st.booleans(),
    step=st.sampled_from([10**9, 70_000, 1000]),
)
def test_ranges(offset: int, length: int, from_end: bool, step: int) -> None:
    """Every range is the plaintext's slice."""
    length = min(length, len(PLAIN) - offset)
    plain = read_range(FILE, offset, length, from_end=from_end, step=step)
    assert plain == PLAIN[offset : offset + length]


@pytest.mark.parametrize("size", SIZES)
def test_ranges_at_the_edges(size: int) -> None:
    """First and last bytes, the end itself, all, in files of every shape."""
    plain = PLAIN[:size]
    file = encrypt(plain)
    edges = {0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, size - 1, size}
    for start in edges:
        for end in edges:
            if 0 <= start <= end <= size:
                for from_end in (False, True):
                    assert (
                        read_range(file, start, end - start, from_end=from_end)
                        == (plain[start:end])
                    )


def test_what_a_range_fetches() -> None:
    """Its own chunks; the last one too, and before, where the position depends on the size."""
    unlocked = unlock(FILE, [ALICE])
    layout = unlocked.layout(len(FILE))
    sealed = CHUNK_BYTES + 16

    def fetched(span: Span) -> tuple[int, int]:
        return span.chunks.size, span.final.size if span.final else 0

    assert fetched(layout.span(0, 10, from_end=False)) == (sealed, 0)
    assert fetched(layout.span(0, 10)) == (sealed, 1234 + 16)
    assert fetched(layout.span(CHUNK_BYTES - 1, 2, from_end=False)) == (2 * sealed, 0)
    assert fetched(layout.span(len(PLAIN) - 500, 500)) == (1234 + 16, 0)
    assert fetched(layout.span(len(PLAIN), 0, from_end=False)) == (1234 + 16, 0)
    assert fetched(layout.span(10, 0, from_end=False)) == (0, 0)
    assert fetched(layout.span(0, len(PLAIN), from_end=False)) == (3 * sealed + 1250, 0)
    for offset, length in ((-1, 1), (0, len(PLAIN) + 1), (len(PLAIN), 1), (5, -1)):
        with pytest.raises(ValueError, match="outside"):
            layout.span(offset, length)
    huge = Layout(200, sealed_size(2**40, 184))
    assert fetched(huge.span(2**40 - 1, 1)) == (sealed, 0)


def test_a_range_needs_its_last_chunk() -> None:
    """A file that was cut at a chunk's end doesn't pass for a shorter one: by the reader that is
    told so, and by the one that reads to the end."""
    unlocked = unlock(FILE, [ALICE])
    cut = FILE[: unlocked.start_size + 2 * (CHUNK_BYTES + 16)]
    layout = unlocked.layout(len(cut))
    assert layout.plaintext_size == 2 * CHUNK_BYTES
    span = layout.span(0, 10)
    reader = RangeDecryptor(unlocked, span)
    chunk = cut[span.chunks.start : span.chunks.end]
    assert span.final is not None
    for call in (reader.finish, lambda: reader.update(chunk)):
        with pytest.raises(ValueError, match="first"):
            call()
    with pytest.raises(BadPayload):
        reader.check_final(cut[span.final.start : span.final.end])
    with pytest.raises(ValueError, match="first"):
        reader.update(chunk)
    with pytest.raises(BadPayload):
        read_range(cut, 2 * CHUNK_BYTES - 1, 1)
    with pytest.raises(BadPayload):
        read_range(cut, 2 * CHUNK_BYTES, 0)
    assert read_range(cut, 0, 10) == PLAIN[:10]


def test_a_range_tells_every_cut() -> None:
    """Fewer bytes than asked for are a cut, wherever; more are too many; others are wrong."""
    unlocked = unlock(FILE, [ALICE])
    span = unlocked.layout(len(FILE)).span(10, len(PLAIN) - 20, from_end=False)
    sealed = FILE[span.chunks.start : span.chunks.end]
    for end in (0, 1, 70_000, CHUNK_BYTES + 16, len(sealed) - 1250, len(sealed) - 1):
        reader = RangeDecryptor(unlocked, span)
        assert PLAIN[10:].startswith(reader.update(sealed[:end]))
        with pytest.raises(TruncatedPayload):
            reader.finish()
    reader = RangeDecryptor(unlocked, span)
    with pytest.raises(TrailingData):
        reader.update(sealed + b"x")
    with pytest.raises(TruncatedPayload):
        RangeDecryptor(unlocked, unlocked.layout(len(FILE)).span(0, 1)).check_final(b"x" * 20)


def test_sizes_that_no_file_has() -> None:
    """Told from the size alone."""
    for payload, error in ((0, Truncated), (15, Truncated), (-5, Truncated), (65568, BadPayload)):
        with pytest.raises(error):
            Unlocked(200, bytes(32)).layout(200 + payload)


def test_one_flipped_bit_anywhere() -> None:
    """In header, nonce, chunk or tag: an error, and nothing given out."""
    file = bytearray(encrypt(b"some secret"))
    for position in range(len(file)):
        for bit in range(8):
            file[position] ^= 1 << bit
            plain, error = given_out(bytes(file))
            assert error is not None
            assert plain == b""
            file[position] ^= 1 << bit


@settings(deadline=None, max_examples=100)
@given(position=st.integers(0, len(FILE) - 1), bit=st.integers(0, 7))
def test_one_flipped_bit_in_many_chunks(position: int, bit: int) -> None:
    """Only what comes before the damaged chunk is given out; a range that needs it is refused, one
    that doesn't is right."""
    file = bytearray(FILE)
    file[position] ^= 1 << bit
    damaged = bytes(file)
    plain, error = given_out(damaged)
    assert error is not None
    start = len(FILE) - (len(PLAIN) + 4 * 16)
    chunk = (position - start) // (CHUNK_BYTES + 16)
    assert plain == PLAIN[: max(0, chunk) * CHUNK_BYTES]
    for index in range(4):
        offset = index * CHUNK_BYTES + 100
        if position < start or index == chunk:
            with pytest.raises(AgeError):
                read_range(damaged, offset, 50)
        else:
            assert read_range(damaged, offset, 50) == PLAIN[offset : offset + 50]


@pytest.mark.parametrize(
    "damage",
    [
        lambda chunks: [chunks[1], chunks[0], *chunks[2:]],
        lambda chunks: [chunks[0], *chunks[2:]],
        lambda chunks: [chunks[0], *chunks],
        lambda chunks: [*chunks, chunks[-1]],
        lambda chunks: [*chunks, b"x"],
        lambda chunks: chunks[:-1],
        lambda chunks: [],
    ],
    ids=["swapped", "lost", "doubled", "last doubled", "longer", "last lost", "none"],
)
def test_chunks_in_disorder(damage: Callable[[list[bytes]], list[bytes]]) -> None:
    """Every chunk has its place, and the last is the last."""
    start = len(FILE) - (len(PLAIN) + 4 * 16)
    edges = range(start, len(FILE), CHUNK_BYTES + 16)
    chunks = [FILE[edge : edge + CHUNK_BYTES + 16] for edge in edges]
    plain, error = given_out(FILE[:start] + b"".join(damage(chunks)))
    assert isinstance(error, BadPayload)
    assert PLAIN.startswith(plain)


def test_cut_anywhere() -> None:
    """Every beginning of a file is an error, never a shorter file; the clean cuts are told."""
    file = encrypt(b"x" * 40)
    start = len(file) - 40 - 16
    for end in range(len(file)):
        plain, error = given_out(file[:end])
        assert plain == b""
        if end < start:
            assert isinstance(error, TruncatedHeader)
        elif end < start + 16:
            assert isinstance(error, TruncatedPayload)
        else:
            assert isinstance(error, BadPayload)
    plain, error = given_out(FILE[: -(1234 + 16)])
    assert plain == PLAIN[: 3 * CHUNK_BYTES]
    assert isinstance(error, TruncatedPayload)
    _, error = given_out(FILE[: len(FILE) - 1234 - 16] + b"x" * 16)
    assert isinstance(error, BadPayload)
    for size in (CHUNK_BYTES, 2 * CHUNK_BYTES):
        plain, error = given_out(encrypt(PLAIN[:size]) + b"x")
        assert plain == PLAIN[:size]
        assert isinstance(error, TrailingData)


def test_an_error_comes_after_what_is_good() -> None:
    """By the next call when the same one has something to give; then for ever."""
    file = bytearray(FILE)
    file[-1] ^= 1
    file[-1300] ^= 1  # in the third chunk
    reader = Decryptor([ALICE])
    assert reader.update(bytes(file)) == PLAIN[: 2 * CHUNK_BYTES]
    for call in (reader.finish, reader.finish, lambda: reader.update(b"x")):
        with pytest.raises(BadPayload):
            call()


def test_constant_memory() -> None:
    """200 MiB through both, in pieces of 1 MiB."""
    piece = os.urandom(MIB)
    writer, reader = Encryptor([ALICE.recipient]), Decryptor([ALICE])
    total = 0
    tracemalloc.start()
    try:
        for _ in range(200):
            plain = reader.update(writer.update(piece))
            total += len(plain)
        total += len(reader.update(writer.finish())) + len(reader.finish())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 200 * MIB
    assert most < 6 * MIB
