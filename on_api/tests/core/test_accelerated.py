"""Answers that nginx sends: charged in full, refunded once."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from on_api.core.metrics import Metrics
from on_api.core.models import AccelCharge, ApiKey, EgressCounter
from on_api.core.models.database import utc_now
from on_api.core.models.traffic import KEY
from on_api.core.services.traffic.accelerated import AcceleratedAnswers, Refunded, read_line
from on_api.core.services.traffic.egress import EgressLedger
from on_api.core.services.traffic.metering import Charge, Kind
from on_api.core.services.traffic.upkeep import ACCEL_KEPT, keep_traffic
from on_api.core.setting_groups import MIB, TrafficSettings
from on_api.tests.testing.metering import Stage, send

CID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


def answers_on(stage: Stage, **settings: Any) -> AcceleratedAnswers:
    """What one process has."""
    traffic = TrafficSettings(**settings)
    return AcceleratedAnswers(stage.database, EgressLedger(stage.database, traffic), Metrics())


def name() -> str:
    """As nginx makes them."""
    return uuid.uuid4().hex


def counter(stage: Stage, owner: uuid.UUID | None) -> int:
    """Bytes spent this month."""
    return stage.counter(owner, utc_now().strftime("%Y-%m"))


def test_what_was_not_sent_comes_back_once(stage: Stage) -> None:
    """From the detail, the owner and the instance; by two who read the same log at once too."""
    owner, answers = stage.new_user(), answers_on(stage)
    charge, names = Charge(Kind.GATEWAY, owner, cid=CID), [name() for _ in range(20)]
    for one in names:
        assert answers.charge(one, charge, 10 * MIB)
    assert not answers.charge(names[0], charge, 10 * MIB)
    assert counter(stage, owner) == counter(stage, None) == 200 * MIB

    sent = dict.fromkeys(names, MIB)
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(answers.refund, [sent] * 4))
    assert sum(refunded.answers for refunded in done) == 20
    assert sum(refunded.bytes for refunded in done) == 180 * MIB
    assert answers.refund({**sent, name(): 5}) == Refunded(0, 0)
    assert counter(stage, owner) == counter(stage, None) == 20 * MIB
    (row,) = stage.rows()
    assert (row.kind, row.owner_id, row.cid) == ("gateway", owner, CID)
    assert (row.requests, row.bytes_out) == (20, 20 * MIB)


def test_more_than_was_charged_is_counted(stage: Stage) -> None:
    """Whatever nginx sent: the count is never below it."""
    owner, answers, one = stage.new_user(), answers_on(stage), name()
    assert answers.charge(one, Charge(Kind.GATEWAY, owner), MIB)
    assert answers.refund({one: 3 * MIB}) == Refunded(1, -2 * MIB)
    assert counter(stage, owner) == stage.rows()[0].bytes_out == 3 * MIB


@pytest.mark.anyio
async def test_a_budget_that_leaves_less_charges_nothing(stage: Stage) -> None:
    """What processes hold as credit counts as spent; what comes back can be spent again."""
    owner, answers, meter = stage.new_user(budget=10 * MIB), answers_on(stage), stage.meter()
    charge = Charge(Kind.GATEWAY, owner)
    ticket = await meter.open(charge, 2 * MIB)
    await send(ticket, MIB, MIB)
    ticket.close(200)
    one = name()
    assert not answers.charge(name(), charge, 9 * MIB)
    assert answers.charge(one, charge, 7 * MIB)
    assert not answers.charge(name(), charge, 2 * MIB)
    assert [row.requests for row in stage.rows()] == [1]
    answers.refund({one: MIB})
    assert answers.charge(name(), charge, 5 * MIB)
    assert answers_on(stage, over_budget="allow").charge(name(), charge, 50 * MIB)
    await meter.close()
    assert counter(stage, owner) == (2 + 1 + 5 + 50) * MIB


def test_a_key_with_a_budget_pays_and_gets_back(stage: Stage) -> None:
    """One that had none when it was charged is not refunded what it never paid."""
    owner, answers = stage.new_user(), answers_on(stage)
    with stage.database.session_scope() as session:
        row = ApiKey(
            user_id=owner,
            name="key",
            prefix="onapi_",
            digest=uuid.uuid4().bytes,
            secret_version=1,
            scopes=[],
        )
        session.add(row)
        session.flush()
        key = row.id
    charge, (first, second) = Charge(Kind.GATEWAY, owner, key), (name(), name())
    assert answers.charge(first, charge, MIB)
    with stage.database.session_scope() as session:
        session.get_one(ApiKey, key).egress_budget = 3 * MIB
    assert answers.charge(second, charge, 2 * MIB)
    assert not answers.charge(name(), charge, 2 * MIB)
    answers.refund({first: 0, second: MIB})
    with stage.database.session_scope(write=False) as session:
        spent = session.get_one(EgressCounter, (KEY, key, utc_now().strftime("%Y-%m")))
        assert spent.bytes == MIB
    assert counter(stage, owner) == MIB


def test_what_nobody_tells_of_stays_counted(stage: Stage) -> None:
    """Its row goes after a day; a line that comes later changes nothing."""
    owner, answers, one = stage.new_user(), answers_on(stage), name()
    assert answers.charge(one, Charge(Kind.GATEWAY, owner), MIB)
    keep_traffic(stage.database, TrafficSettings())
    with stage.database.session_scope(write=False) as session:
        assert session.get(AccelCharge, one) is not None
    keep_traffic(stage.database, TrafficSettings(), utc_now() + ACCEL_KEPT + timedelta(minutes=1))
    assert answers.refund({one: 0}) == Refunded(0, 0)
    assert counter(stage, owner) == MIB


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (f"2026-11-24T13:02:37+00:00 {'a1' * 16} 200 123\n", ("a1" * 16, 123)),
        (f"2026-11-24T13:02:37+00:00 {'a1' * 16} 499 0\n", ("a1" * 16, 0)),
        (f"2026-11-24T13:02:37+00:00 {'a1' * 16} 200 -5\n", None),
        (f"2026-11-24T13:02:37+00:00 {'a1' * 15} 200 5\n", None),
        ("- - 200 5\n", None),
        ("", None),
    ],
)
def test_lines(line: str, found: tuple[str, int] | None) -> None:
    """Whatever else is in a log is passed over."""
    assert read_line(line) == found
