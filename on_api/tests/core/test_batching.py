"""Work done together: who comes meanwhile shares the next transaction, nobody another's error."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Sequence

import pytest

from on_api.core.errors import DatabaseUnavailable, QuotaExceeded
from on_api.core.services.shared.batching import MOST_PIECES, Batcher

pytestmark = pytest.mark.anyio

ALICE, BOB = uuid.uuid4(), uuid.uuid4()


class Work:
    """Doubles numbers, refuses negative ones; the first piece of all waits for `gate`."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.batches: list[list[int]] = []
        self.failure: Exception | None = None

    def __call__(self, pieces: Sequence[int]) -> list[int]:
        self.batches.append(list(pieces))
        if len(self.batches) == 1:
            assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        if any(piece < 0 for piece in pieces):
            raise QuotaExceeded
        return [2 * piece for piece in pieces]


async def all_at_once(work: Work, pieces: Sequence[int]) -> list[int | BaseException]:
    """Ask for all of them while the first is held, then let it go."""
    together = Batcher(work)
    asked = [asyncio.create_task(together.do(ALICE, piece)) for piece in pieces]
    async with asyncio.timeout(10):
        while not work.batches:
            await asyncio.sleep(0)
        work.gate.set()
        return await asyncio.gather(*asked, return_exceptions=True)


async def test_who_comes_meanwhile_shares_the_next_transaction() -> None:
    """Pieces asked for at the same moment share a transaction, `MOST_PIECES` at most."""
    work = Work()
    pieces = list(range(2 * MOST_PIECES))
    assert await all_at_once(work, pieces) == [2 * piece for piece in pieces]
    assert [len(batch) for batch in work.batches] == [MOST_PIECES, MOST_PIECES]


async def test_an_error_is_only_its_own() -> None:
    """One that is refused does not take the others with it, and they are done once each."""
    work = Work()
    outcomes = await all_at_once(work, [1, -1, 3])
    assert isinstance(outcomes[1], QuotaExceeded)
    assert (outcomes[0], outcomes[2]) == (2, 6)
    assert work.batches == [[1, -1, 3], [1], [-1], [3]]


async def test_a_database_that_is_gone_is_waited_for_once() -> None:
    """Everyone is told; trying each by itself would take as many time-outs as there are."""
    work = Work()
    work.failure = DatabaseUnavailable()
    outcomes = await all_at_once(work, [1, 2, 3])
    assert all(isinstance(outcome, DatabaseUnavailable) for outcome in outcomes)
    assert len(work.batches) == 1


async def test_one_who_leaves_hurts_nobody() -> None:
    """A caller that is cancelled, and one of another user who is not kept waiting."""
    work = Work()
    together = Batcher(work)
    async with asyncio.timeout(10):
        leaving = asyncio.create_task(together.do(ALICE, 1))
        while not work.batches:
            await asyncio.sleep(0)
        staying = asyncio.create_task(together.do(ALICE, 2))
        assert await together.do(BOB, 5) == 10
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        work.gate.set()
        assert await staying == 4
        assert await together.do(ALICE, 3) == 6
