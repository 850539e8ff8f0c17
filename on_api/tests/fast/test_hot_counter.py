"""Answers from memory counted without a ticket: as with one, to the byte and within budgets."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest

from on_api.core.errors import EgressBudgetExceeded
from on_api.core.services.traffic.metering import Charge, Kind
from on_api.core.setting_groups import MIB
from on_api.fast.hot_counter import HotCounter
from on_api.tests.testing.metering import Stage


@pytest.mark.anyio
async def test_it_does_not_guess(stage: Stage) -> None:
    """Without credit, or when budgets may have changed, somebody else has to look."""
    owner, meter = stage.new_user(budget=10 * MIB), stage.meter()
    charge = Charge(Kind.GATEWAY, owner)
    tally = HotCounter(meter, charge)
    assert not tally.take(8192)
    async with asyncio.timeout(20):
        while not tally.take(8192):  # news may have come in between
            (await meter.open(charge, 8192)).close(200)
    assert not tally.take(9 * MIB)
    stage.set_budget(owner, 10)
    assert not tally.take(8192)
    with pytest.raises(EgressBudgetExceeded):
        await meter.open(charge, 8192)
    assert not tally.take(8192)
    await meter.close()
    assert sum(row.bytes_out for row in stage.rows()) == 8192
    assert stage.counter(owner) == stage.counter(None) == 8192


@pytest.mark.anyio
async def test_it_lasts(stage: Stage) -> None:
    """Through flushes, times when nobody asks, hours and a month: each byte is in the row and on
    the counters of its moment, beside tickets for the same charge."""
    owner, meter = stage.new_user(), stage.meter()
    charge = Charge(Kind.GATEWAY, owner)
    tally, dice = HotCounter(meter, charge), random.Random(5)
    sent: dict[tuple[int, int], int] = {}
    for _ in range(150):
        for _ in range(dice.randrange(20)):
            size = dice.randrange(1, 200_000)
            if not tally.take(size):
                ticket = await meter.open(charge, size)
                if not ticket.take(size):
                    await ticket.more(size)
                ticket.close(200)
            hour = (stage.now.month, stage.now.hour)
            sent[hour] = sent.get(hour, 0) + size
        of_month = sum(size for (month, _), size in sent.items() if month == stage.now.month)
        assert stage.counter(owner, stage.now.strftime("%Y-%m")) >= of_month
        if dice.random() < 0.3:
            await meter.flush()
        if dice.random() < 0.1:
            stage.now += timedelta(hours=1)
        if stage.now.month == 11 and dice.random() < 0.02:
            stage.now = datetime(2026, 12, 1, tzinfo=UTC)
    await meter.close()
    counted = {(row.period.month, row.period.hour): row.bytes_out for row in stage.rows()}
    assert counted == sent
    assert sum(sent.values()) == stage.counter(owner) + stage.counter(owner, "2026-12")
