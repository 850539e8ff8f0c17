"""The memory that all streaming bodies share: never more than there is, in turn, and back when it
is released."""

from __future__ import annotations

import asyncio

import pytest

from on_api.core.streams.blocks import (
    LEAST_BYTES,
    MOST_BYTES,
    TOGETHER_BYTES,
    BufferPool,
    MemoryBlock,
)

pytestmark = pytest.mark.anyio


async def test_blocks_are_dealt_out_in_turn() -> None:
    """As much as there is; then, whenever one is released, the one who has waited longest."""
    pool = BufferPool(2 * MOST_BYTES)
    taken: dict[str, MemoryBlock] = {}
    for name in "abcd":
        pool.ask(MOST_BYTES, lambda block, name=name: taken.update({name: block}))  # type: ignore[misc]
    assert (sorted(taken), pool.held) == (["a", "b"], 2 * MOST_BYTES)
    taken["a"].release()
    await asyncio.sleep(0)
    assert sorted(taken) == ["a", "b", "c"]
    for name in "bc":
        taken[name].release()
    await asyncio.sleep(0)
    assert (sorted(taken), pool.held) == (["a", "b", "c", "d"], MOST_BYTES)


async def test_a_block_counts_until_it_is_released_and_is_released_once() -> None:
    """Whether somebody still refers to it, or nobody does any more: neither tells."""
    pool = BufferPool(2 * MOST_BYTES)
    taken: list[MemoryBlock] = []
    pool.ask(MOST_BYTES, taken.append)
    pool.ask(MOST_BYTES, lambda _: None)
    assert pool.held == 2 * MOST_BYTES
    for _ in range(2):
        taken[0].release()
    assert pool.held == MOST_BYTES
    assert len(taken[0].memory) == MOST_BYTES


async def test_who_is_smaller_does_not_overtake_but_the_smallest_do_not_wait() -> None:
    """Else large ones would never get theirs, and the slow would need room."""
    pool = BufferPool(2 * MOST_BYTES)
    taken: list[MemoryBlock] = []
    for size in (MOST_BYTES, MOST_BYTES // 2, MOST_BYTES, LEAST_BYTES + 1):
        pool.ask(size, taken.append)
    assert [len(block.memory) for block in taken] == [MOST_BYTES, MOST_BYTES // 2]
    pool.ask(LEAST_BYTES, taken.append)
    assert len(taken[-1].memory) == LEAST_BYTES
    taken[-1].release()
    assert pool.held == MOST_BYTES + MOST_BYTES // 2


async def test_what_is_withdrawn_is_passed_over() -> None:
    """By whoever waits behind it."""
    pool = BufferPool(2 * MOST_BYTES)
    taken: list[MemoryBlock] = []
    for _ in range(2):
        pool.ask(MOST_BYTES, taken.append)
    asked = pool.ask(MOST_BYTES, lambda _: pytest.fail("it was withdrawn"))
    pool.ask(MOST_BYTES, taken.append)
    asked.withdraw()
    taken[0].release()
    await asyncio.sleep(0)
    assert len(taken) == 3


async def test_what_could_not_be_taken_is_given_to_the_next() -> None:
    """Else that room would be gone for as long as the process lives."""
    pool = BufferPool(2 * MOST_BYTES)
    taken: list[MemoryBlock] = []

    def fail(_: MemoryBlock) -> None:
        raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            pool.ask(MOST_BYTES, fail)
    assert pool.held == 0
    for _ in range(2):
        pool.ask(MOST_BYTES, taken.append)
    pool.ask(MOST_BYTES, fail)
    pool.ask(MOST_BYTES, taken.append)
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what["exception"]))
    taken[0].release()
    for _ in range(3):
        await asyncio.sleep(0)
    assert (len(taken), pool.held) == (3, 2 * MOST_BYTES)
    assert [type(error) for error in told] == [ZeroDivisionError]


def test_many_have_smaller_blocks() -> None:
    """So that very many hold no more memory than a few."""
    pool = BufferPool()
    streams = [pool.streaming() for _ in range(1000)]
    for index, stream in enumerate(streams, 1):
        stream.__enter__()
        assert LEAST_BYTES <= pool.share() <= MOST_BYTES
        assert pool.share() == LEAST_BYTES or 2 * pool.share() * index <= TOGETHER_BYTES
    for stream in streams:
        stream.__exit__(None, None, None)
    assert pool.share() == MOST_BYTES
