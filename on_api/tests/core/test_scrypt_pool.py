"""The queue before scrypt: whose turn it is, who is refused, what becomes of those who leave."""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from on_api.core.crypto.kdf import Scrypt
from on_api.core.errors import ServiceUnavailable, TooManyRequests
from on_api.core.server_settings import AuthSettings
from on_api.core.services.accounts import scrypt_pool
from on_api.core.services.accounts.scrypt_pool import Asker, ScryptPool
from on_api.tests.testing.gates import Gate

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
EVE, MALLORY = Asker.stranger("192.0.2.1"), Asker.stranger("192.0.2.2")
ALICE = Asker.user(uuid.UUID(int=1), "192.0.2.1")


@contextmanager
def pool_of_one(
    monkeypatch: pytest.MonkeyPatch,
    *,
    threads: int = 1,
    memory: int = 64 * MIB,
    most_held_back: int = 0,
    **settings: int,
) -> Iterator[ScryptPool]:
    """A pool with one thread."""
    monkeypatch.setattr(os, "cpu_count", lambda: threads + 1)
    pool = ScryptPool(Scrypt(memory=memory), AuthSettings(**settings), most_held_back)
    yield pool
    pool.close()


class Work:
    """Pieces of work that are held at a gate and tell in which order they went on."""

    def __init__(self, pool: ScryptPool) -> None:
        self.gate = Gate()
        self.done: list[str] = []
        self._pool = pool

    def __call__(self, name: str, asker: Asker, memory: int = MIB) -> asyncio.Task[str]:
        """Begin one."""

        def work() -> str:
            self.gate.wait()
            self.done.append(name)
            return name

        return asyncio.create_task(self._pool.run(asker, work, memory=memory))

    async def begun(self, count: int) -> None:
        """Wait until so many are at the gate or wait for their turn."""
        async with asyncio.timeout(30):
            while self._pool.waiting < count or not self.gate.held:
                await asyncio.sleep(0.001)


async def test_known_people_and_networks_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood from one address delays itself; who is known comes next after one stranger."""
    with pool_of_one(monkeypatch) as pool:
        work = Work(pool)
        tasks = [work(f"eve {number}", EVE) for number in range(5)]
        await work.begun(5)
        tasks += [work("mallory 0", MALLORY), work("mallory 1", MALLORY), work("alice", ALICE)]
        await work.begun(8)
        work.gate.open()
        await asyncio.gather(*tasks)
        assert work.done == [
            "eve 0", "alice", "eve 1", "mallory 0", "eve 2", "mallory 1", "eve 3", "eve 4",
        ]  # fmt: skip
        assert pool.waiting == 0


async def test_refused_at_once_when_too_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """429 for an address over its share, 503 for everybody when the line is full; those who are
    known have a line of their own. Afterwards there is room again."""
    with pool_of_one(monkeypatch, scrypt_waiting=5, scrypt_per_address=3) as pool:
        work = Work(pool)
        tasks = [work("eve", EVE) for _ in range(3)]
        await work.begun(3)
        with pytest.raises(TooManyRequests) as refused:
            await work("eve", EVE)
        assert int(refused.value.headers["Retry-After"]) > 0
        same_network = Asker.stranger("2001:db8::1"), Asker.stranger("2001:db8::2")
        tasks += [work("six", asker) for asker in same_network]
        await work.begun(5)
        with pytest.raises(ServiceUnavailable) as full:
            await work("mallory", MALLORY)
        assert int(full.value.headers["Retry-After"]) > 0
        tasks.append(work("alice", ALICE))
        await work.begun(6)
        work.gate.open()
        await asyncio.gather(*tasks)
        assert await work("eve", EVE) == "eve"


async def test_refusals_are_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bounded number of them, so that nobody keeps the event loop busy by asking again; they hold
    no place meanwhile."""
    monkeypatch.setattr(scrypt_pool, "REFUSAL_SECONDS", 3600)
    with pool_of_one(monkeypatch, most_held_back=2, scrypt_per_address=1) as pool:
        work = Work(pool)
        first = work("first", EVE)
        await work.begun(1)
        held_back = [work("eve", EVE) for _ in range(2)]
        with pytest.raises(TooManyRequests):
            await work("eve", EVE)
        assert not any(task.done() for task in held_back)
        other = work("mallory", MALLORY)
        await work.begun(2)
        work.gate.open()
        await asyncio.gather(first, other)
        assert work.done == ["first", "mallory"]
        for task in held_back:
            task.cancel()
        await asyncio.gather(*held_back, return_exceptions=True)
        assert pool.waiting == 0


@pytest.mark.parametrize("address", ["2001:db8:1:2::1", "2001:db8:1:2:ffff::9"])
def test_an_ipv6_network_is_one(address: str) -> None:
    """Whoever has one address of a /64 has them all."""
    assert Asker.stranger(address) == Asker.stranger("2001:db8:1:2::77")
    assert Asker.stranger(address) != Asker.stranger("2001:db8:1:3::1")


async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose turn doesn't come in time is told to come back, and holds no place any more."""
    monkeypatch.setattr(scrypt_pool, "STRANGERS_PATIENCE_SECONDS", 0.05)
    with pool_of_one(monkeypatch) as pool:
        work = Work(pool)
        first = work("first", EVE)
        await work.begun(1)
        with pytest.raises(ServiceUnavailable):
            await work("second", EVE)
        assert pool.waiting == 1
        work.gate.open()
        assert await first == "first"
        assert work.done == ["first"]


async def test_who_leaves_frees_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """While waiting, and in a thread: then the thread is taken until the work ends."""
    with pool_of_one(monkeypatch, scrypt_per_address=2) as pool:
        work = Work(pool)
        running = work("running", EVE)
        await work.begun(1)
        waiting = work("waiting", EVE)
        await work.begun(2)
        for task in (waiting, running):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert pool.waiting == 0
        later = work("later", EVE)
        await work.begun(1)
        assert work.done == []
        work.gate.open()
        assert await later == "later"
        assert work.done == ["running", "later"]


async def test_memory_is_waited_for_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing small overtakes what needs all the memory."""
    with pool_of_one(monkeypatch, threads=3) as pool:
        work = Work(pool)
        tasks = [work("small", EVE, 32 * MIB)]
        await work.begun(1)
        tasks += [work("large", EVE, 256 * MIB), work("late", EVE, 32 * MIB)]
        await work.begun(3)
        assert work.gate.held == 1
        work.gate.open()
        await asyncio.gather(*tasks)
        assert work.done == ["small", "large", "late"]


async def test_the_same_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all who ask for it at the same time, also when the first of them leaves; what it raises
    is raised for each."""
    with pool_of_one(monkeypatch, scrypt_per_address=1) as pool:
        gate, times = Gate(), threading.Semaphore(0)

        def look() -> str:
            gate.wait()
            times.release()
            return "looked"

        def ask(work: Callable[[], str]) -> asyncio.Task[str]:
            return asyncio.create_task(pool.run(EVE, work, memory=MIB, same=b"the same"))

        tasks = [ask(look) for _ in range(20)]
        async with asyncio.timeout(30):
            while not gate.held:
                await asyncio.sleep(0.001)
        tasks[0].cancel()
        gate.open()
        assert await asyncio.gather(*tasks[1:]) == ["looked"] * 19
        assert times.acquire(blocking=False)
        assert not times.acquire(blocking=False)

        def fail() -> str:
            raise ServiceUnavailable

        failed = await asyncio.gather(*(ask(fail) for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in failed] == [ServiceUnavailable] * 3


class Crossing:
    """What threads call into the event loop: told when it has come, held where that is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        real, here = loop.call_soon_threadsafe, threading.get_ident()
        self.came, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

        def call(*args: object, **kwargs: object) -> asyncio.Handle:
            handle = real(*args, **kwargs)  # type: ignore[arg-type]  # passed on as it is
            if threading.get_ident() != here:
                self.came.set()
                self.go_on.wait(60)
            return handle

        monkeypatch.setattr(loop, "call_soon_threadsafe", call)


async def serves(work: Work) -> None:
    """It has its one thread still, and no more: who is known is first as soon as it is free."""
    work.gate, work.done = Gate(), []
    tasks = [work("first", EVE)]
    async with asyncio.timeout(30):
        await work.begun(1)
        tasks += [work("eve", EVE), work("alice", ALICE)]
        await work.begun(3)
        work.gate.open()
        await asyncio.gather(*tasks)
    assert work.done == ["first", "alice", "eve"]


async def test_who_is_cancelled_just_before_the_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn ends while the cancelled one hasn't woken: the next one has it."""
    with pool_of_one(monkeypatch) as pool:
        work = Work(pool)
        crossing = Crossing(monkeypatch)
        running = work("running", EVE)
        await work.begun(1)
        waiting, behind = work("waiting", EVE), work("behind", EVE)
        await work.begun(3)
        work.gate.open()
        assert crossing.came.wait(30)  # the loop, which is held here, will end the turn first
        waiting.cancel()
        async with asyncio.timeout(30):
            await asyncio.gather(running, behind)
        assert work.done == ["running", "behind"]
        assert waiting.cancelled()
        assert pool.waiting == 0
        await serves(work)


async def test_who_is_cancelled_when_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that was never had isn't given back."""
    monkeypatch.setattr(scrypt_pool, "STRANGERS_PATIENCE_SECONDS", 0)
    with pool_of_one(monkeypatch) as pool:
        work = Work(pool)
        running = work("running", ALICE)
        await work.begun(1)
        waiting = work("waiting", EVE)
        while pool.waiting < 2:
            await asyncio.sleep(0)
        # Right behind the end of its patience, which comes with the loop's next round.
        asyncio.get_running_loop().call_later(0, waiting.cancel)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        one, other = work("one", ALICE), work("other", ALICE)
        await work.begun(3)
        later = work("later", Asker.user(uuid.UUID(int=2), None))
        await work.begun(4)
        work.gate.open()
        await asyncio.gather(running, one, other, later)
        assert work.done == ["running", "one", "later", "other"]


async def test_who_is_cancelled_before_the_thread_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its turn, but the thread is busy with the end of the one before."""
    with pool_of_one(monkeypatch) as pool:
        work = Work(pool)
        crossing = Crossing(monkeypatch)
        crossing.go_on.clear()
        running = work("running", EVE)
        await work.begun(1)
        work.gate.open()
        assert crossing.came.wait(30)
        second = work("second", EVE)
        for _ in range(10):
            await asyncio.sleep(0)
        second.cancel()
        crossing.go_on.set()
        async with asyncio.timeout(30):
            await asyncio.gather(running, second, return_exceptions=True)
            await serves(work)


async def test_memory_that_nobody_waits_for_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who needed much of it has left: those behind go on at once."""
    with pool_of_one(monkeypatch, threads=3) as pool:
        work = Work(pool)
        small = work("small", EVE, 32 * MIB)
        await work.begun(1)
        large, late = work("large", EVE, 256 * MIB), work("late", EVE, 32 * MIB)
        await work.begun(3)
        large.cancel()
        async with asyncio.timeout(30):
            while work.gate.held < 2:
                await asyncio.sleep(0.001)
        work.gate.open()
        await asyncio.gather(small, late)
