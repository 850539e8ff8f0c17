"""The meter on a real database: what is counted, when, and that nothing is ever counted too low."""

from __future__ import annotations

import asyncio
import threading
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from on_api.core.errors import EgressBudgetExceeded
from on_api.core.services.traffic.egress import EgressLedger
from on_api.core.services.traffic.metering import Charge, Kind
from on_api.core.setting_groups import MIB
from on_api.tests.testing.metering import Stage, send

CID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


@pytest.mark.anyio
async def test_the_counter_leads_and_the_detail_follows(stage: Stage) -> None:
    """Before the first byte its credit is committed; a flush says what for; the rest comes back."""
    owner, meter = stage.new_user(), stage.meter()
    charge = Charge(Kind.CONTENT, owner, cid=CID)
    ticket = await meter.open(charge, 300_000)
    assert stage.counter(owner) == stage.counter(None) == MIB
    await send(ticket, 100_000, 200_000)
    ticket.close(200)
    assert stage.rows() == []

    await meter.flush()
    (row,) = stage.rows()
    assert (row.kind, row.owner_id, row.cid) == ("content", owner, CID)
    assert (row.requests, row.bytes_out, row.failed) == (1, 300_000, 0)
    assert row.period == datetime(2026, 11, 24, 12, tzinfo=UTC)
    assert stage.counter(owner) == MIB
    assert stage.open_credit() == MIB - 300_000

    await meter.flush()  # nobody has used the rest since
    assert stage.counter(owner) == stage.counter(None) == 300_000
    assert stage.open_credit() == 0
    assert len(stage.rows()) == 1


@pytest.mark.anyio
async def test_memory_alone_lets_an_answer_begin_once_there_is_credit(stage: Stage) -> None:
    """The hot path asks nobody: but it doesn't guess."""
    owner, meter = stage.new_user(budget=10 * MIB), stage.meter()
    charge = Charge(Kind.GATEWAY, owner)
    assert meter.try_open(charge, 8192) is None
    (await meter.open(charge, 8192)).close(200)
    ticket = meter.try_open(charge, 8192)
    assert ticket is not None
    assert ticket.take(8192)
    assert meter.try_open(charge, 9 * MIB) is None
    stage.set_budget(owner, 10)
    assert meter.try_open(charge, 8192) is None
    with pytest.raises(EgressBudgetExceeded):
        await meter.open(charge, 8192)
    assert meter.try_open(charge, 0) is not None


@pytest.mark.anyio
async def test_a_budget_is_never_passed(stage: Stage) -> None:
    """What is known to be too long isn't begun; what turns out so is cut; two processes together
    count no byte over it."""
    budget = 5 * MIB + 17
    owner = stage.new_user(budget)
    first, second = stage.meter(), stage.meter()
    charge = Charge(Kind.CONTENT, owner)
    with pytest.raises(EgressBudgetExceeded) as refused:
        await first.open(charge, budget + 1)
    turn = datetime(2026, 12, 1, tzinfo=UTC) - stage.now
    assert refused.value.headers["Retry-After"] == str(int(turn.total_seconds()) + 1)

    sent = 0
    tickets = [await meter.open(charge, None) for meter in (first, second, first)]
    while tickets:
        for ticket in list(tickets):
            try:
                await send(ticket, 100_000)
                sent += 100_000
            except EgressBudgetExceeded:
                ticket.close(200)
                tickets.remove(ticket)
        assert sent <= stage.counter(owner) <= budget
    assert sent > budget - 3 * 100_000 - 64 * 1024
    for meter in (first, second):
        await meter.close()
    assert stage.counter(owner) == sum(row.bytes_out for row in stage.rows()) == sent
    assert sum(row.failed for row in stage.rows()) == 3


@pytest.mark.anyio
async def test_credit_on_its_way_back_is_still_the_budgets(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget is compared while a transaction gives back what was idle: it is neither here nor
    there then, and what it would have been enough for must not be refused."""
    owner = stage.new_user(budget=1_000_000)
    meter = stage.meter()
    ticket = await meter.open(Charge(Kind.CONTENT, owner), 100_000)
    await send(ticket, 100_000)
    ticket.close(200)
    account = meter.accounts_of(Charge(Kind.CONTENT, owner))[-1]
    assert account.credit > 0
    sync, let, returning = EgressLedger.sync, threading.Event(), threading.Event()

    def held_sync(*arguments: Any) -> Any:
        if account.credit == 0:
            returning.set()
            assert let.wait(30)
        return sync(*arguments)

    monkeypatch.setattr(EgressLedger, "sync", held_sync)

    async def flush_until_it_is_idle() -> None:
        while not returning.is_set():
            await meter.flush()

    flushing = asyncio.create_task(flush_until_it_is_idle())
    assert await asyncio.to_thread(returning.wait, 30)
    stage.set_budget(owner, 1_000_000)  # news: what is known of budgets has to be asked anew
    opening = asyncio.create_task(meter.open(Charge(Kind.CONTENT, owner), 900_000))
    await asyncio.wait({opening}, timeout=1)
    let.set()
    await flushing
    await send(await opening, 900_000)


@pytest.mark.anyio
async def test_the_instances_budget_covers_everybody(stage: Stage) -> None:
    """Owners without a budget of their own, and what is nobody's; every administrator is told."""
    owner = stage.new_user()
    meter = stage.meter(instance_budget=3 * MIB)
    for charge in (Charge(Kind.CONTENT, owner), Charge(Kind.GATEWAY, None)):
        ticket = await meter.open(charge, MIB)
        await send(ticket, MIB)
        ticket.close(200)
    with pytest.raises(EgressBudgetExceeded):
        await meter.open(Charge(Kind.GATEWAY, None), MIB + 1)
    await meter.close()
    assert (stage.counter(owner), stage.counter(None)) == (MIB, 2 * MIB)


@pytest.mark.anyio
async def test_detail_that_cannot_be_written_stops_nothing(stage: Stage) -> None:
    """The bytes are counted all the same, and so is what comes after."""
    owner, meter = stage.new_user(), stage.meter()
    for cid in ("x\x00" if stage.database.is_postgresql else CID, CID):
        ticket = await meter.open(Charge(Kind.GATEWAY, owner, cid=cid), None)
        await send(ticket, 1000)
        ticket.close(200)
        await meter.flush()
    await meter.close()
    assert stage.counter(owner) == sum(row.bytes_out for row in stage.rows()) == 2000


@pytest.mark.anyio
async def test_with_allow_everything_goes_and_is_counted(stage: Stage) -> None:
    """The budget still tells."""
    owner, meter = stage.new_user(budget=1000), stage.meter(over_budget="allow")
    ticket = await meter.open(Charge(Kind.SHARE, owner), 3 * MIB)
    await send(ticket, MIB, MIB, MIB)
    ticket.close(200)
    await meter.close()
    assert stage.counter(owner) == 3 * MIB
    assert [event.data["percent"] for event in stage.events()] == [100]


@pytest.mark.anyio
async def test_thresholds_are_told_once_over_processes(stage: Stage) -> None:
    """At 80 % and at 100 %, whoever takes the slice; again for another budget."""
    owner = stage.new_user(budget=10 * MIB)
    meters = [stage.meter(), stage.meter()]
    charge = Charge(Kind.CONTENT, owner)

    async def use_up() -> None:
        for step in range(200):
            ticket = await meters[step % 2].open(charge, None)
            await send(ticket, 100_000)
            ticket.close(200)

    with pytest.raises(EgressBudgetExceeded):
        await use_up()
    told = [(event.user_id, event.kind, event.data["percent"]) for event in stage.events()]
    assert told == [(owner, "egress.threshold", 80), (owner, "egress.threshold", 100)]
    stage.set_budget(owner, 12 * MIB)
    ticket = await meters[0].open(charge, None)
    await send(ticket, MIB)  # more than it can have left
    assert [event.data["percent"] for event in stage.events()] == [80, 100, 80]


@pytest.mark.anyio
async def test_the_months_turn(stage: Stage) -> None:
    """What is sent after it is December's, in the counter and in the rows; November's credit goes
    back."""
    stage.now = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)
    owner, meter = stage.new_user(budget=MIB), stage.meter()
    charge = Charge(Kind.CONTENT, owner)
    ticket = await meter.open(charge, None)
    await send(ticket, 10_000)
    stage.now += timedelta(seconds=2)
    await send(ticket, 20_000)
    ticket.close(200)
    await meter.flush()
    await meter.close()
    assert (stage.counter(owner), stage.counter(owner, "2026-12")) == (10_000, 20_000)
    assert [(row.period.month, row.bytes_out) for row in stage.rows()] == [
        (11, 10_000),
        (12, 20_000),
    ]
    assert stage.open_credit() == 0


@pytest.mark.anyio
async def test_slices_grow_with_the_rate(stage: Stage) -> None:
    """A fast stream takes 64 MiB at a time, so that its transactions are few."""
    owner, meter = stage.new_user(), stage.meter()
    ticket = await meter.open(Charge(Kind.CONTENT, owner), 1 << 40)
    for _ in range(300):
        await send(ticket, MIB)
    assert 64 * MIB <= stage.counter(owner) - 300 * MIB + 64 * MIB <= 3 * 64 * MIB
    ticket.close(200)
    await meter.close()
    assert stage.counter(owner) == 300 * MIB


@pytest.mark.anyio
async def test_very_many_sums_are_written_at_once(stage: Stage) -> None:
    """More than one statement holds, some of them new and some of them there already."""
    owner, meter = stage.new_user(), stage.meter()
    charges = [Charge(Kind.UPLOAD, owner, file_id=uuid.UUID(int=n), cid=CID) for n in range(1200)]
    for charge in charges[:700]:
        meter.received(charge, 5)
    await meter.flush()
    for charge in charges:
        meter.received(charge, 7)
    await meter.flush()
    sums = {row.file_id: (row.requests, row.bytes_in) for row in stage.rows()}
    assert sums == {c.file_id: (2, 12) if n < 700 else (1, 7) for n, c in enumerate(charges)}
