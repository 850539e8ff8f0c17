"""The memory that all streaming bodies share: never more than there is, in turn, and back when the
last reference to it goes, wherever that was."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from on_api.core.blocks import LEAST_BYTES, MOST_BYTES, TOGETHER_BYTES, Room

pytestmark = pytest.mark.anyio


async def test_blocks_are_dealt_out_in_turn() -> None:
    """As much as there is; then, whenever one is dropped, the one who has waited longest."""
    room = Room(2 * MOST_BYTES)
    taken: dict[str, bytearray] = {}
    for name in "abcd":
        room.ask(MOST_BYTES, lambda block, name=name: taken.update({name: block}))  # type: ignore[misc]
    assert (sorted(taken), room.held()) == (["a", "b"], 2 * MOST_BYTES)
    del taken["a"]
    await asyncio.sleep(0)
    assert sorted(taken) == ["b", "c"]
    taken.clear()
    await asyncio.sleep(0)
    assert sorted(taken) == ["d"]
    taken.clear()
    assert room.held() == 0


async def test_who_is_smaller_does_not_overtake_but_the_smallest_do_not_wait() -> None:
    """Else large ones would never get theirs, and the slow would need room."""
    room = Room(2 * MOST_BYTES)
    taken: list[bytearray] = []
    for size in (MOST_BYTES, MOST_BYTES // 2, MOST_BYTES, LEAST_BYTES + 1):
        room.ask(size, taken.append)
    assert [len(block) for block in taken] == [MOST_BYTES, MOST_BYTES // 2]
    room.ask(LEAST_BYTES, taken.append)
    assert len(taken[-1]) == LEAST_BYTES
    assert room.held() == MOST_BYTES + MOST_BYTES // 2


async def test_what_is_withdrawn_is_passed_over() -> None:
    """By whoever waits behind it."""
    room = Room(2 * MOST_BYTES)
    taken: list[bytearray] = []
    for _ in range(2):
        room.ask(MOST_BYTES, taken.append)
    asked = room.ask(MOST_BYTES, lambda _: pytest.fail("it was withdrawn"))
    room.ask(MOST_BYTES, taken.append)
    asked.withdraw()
    del taken[0]
    await asyncio.sleep(0)
    assert len(taken) == 2


async def test_a_thread_may_be_the_last_that_has_a_block() -> None:
    """Whoever waits for room is woken nevertheless; part of a block counts as all of it."""
    room = Room(2 * MOST_BYTES)
    taken: list[bytearray] = []
    came = asyncio.Event()
    for _ in range(2):
        room.ask(MOST_BYTES, taken.append)
    parts = [memoryview(taken.pop())[:10]]
    room.ask(MOST_BYTES, lambda _: came.set())
    await asyncio.sleep(0)
    assert not came.is_set()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(parts.clear)
        async with asyncio.timeout(10):
            await came.wait()


def test_many_have_smaller_blocks() -> None:
    """So that very many hold no more memory than a few."""
    room = Room()
    streams = [room.streaming() for _ in range(1000)]
    for index, stream in enumerate(streams, 1):
        stream.__enter__()
        assert LEAST_BYTES <= room.share() <= MOST_BYTES
        assert room.share() == LEAST_BYTES or 2 * room.share() * index <= TOGETHER_BYTES
    for stream in streams:
        stream.__exit__(None, None, None)
    assert room.share() == MOST_BYTES
