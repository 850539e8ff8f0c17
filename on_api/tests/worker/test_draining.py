"""Several workers on one queue: everything is done, nothing twice; and how fast that goes."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from sqlalchemy import func, select

from on_api.core.models import Pin
from on_api.core.services.pins.pins import PinRequest
from on_api.core.setting_groups import GcSettings, WorkerSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.invariants import check_invariants
from on_api.tests.testing.network import Peer
from on_api.tests.testing.rpc_proxy import held_rpc
from on_api.tests.worker.conftest import account_of
from on_api.worker.pin_batches import MOST_PINS
from on_api.worker.pinning import BATCHES


@pytest.mark.parametrize(
    "count", [300, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
def test_workers_share_a_queue(
    here: Peer,
    settings_for: Callable[..., Settings],
    postgres_database: DatabaseMaker,
    count: int,
) -> None:
    """Two of them, pins of three users, some of one CID: each is pinned, the node is asked for each
    CID once."""
    cids = [cid for part in range(0, count, 100) for cid in here.add_many(random_files(100))]
    database_url = postgres_database()
    idle = settings_for(database_url, ipfs=here.ipfs, worker=WorkerSettings(embedded=False))
    with ExitStack() as stack:
        api = stack.enter_context(Server(idle))
        proxy = stack.enter_context(held_rpc(str(here.ipfs.rpc_url)))
        working = settings_for(
            database_url,
            ipfs=here.ipfs.model_copy(update={"rpc_url": proxy.url}),
            worker=WorkerSettings(poll=0.1),
            gc=GcSettings(grace=3600, interval=0),
        )
        users = [uuid.UUID(stack.enter_context(account_of(api)).id) for _ in range(3)]
        asked = 0
        for start in range(0, count, 100):
            with api.services.database.session_scope() as session:
                for number, cid in enumerate(cids[start : start + 100]):
                    askers = [users[number % 3]]
                    if number % 10 == 0:
                        askers.append(users[(number + 1) % 3])
                    for asker in askers:
                        api.services.pins.add_many(session, asker, [PinRequest(cid)])
                        asked += 1
        # One has not room for all; so both are at work once more than it takes are under way. Not
        # just so many as both take: a claim that meets another one's CID leaves a place free.
        gate = proxy.hold("pin/add")
        workers = [stack.enter_context(Server(working)) for _ in range(2)]
        until(lambda: leased(api) > BATCHES * MOST_PINS, "both are at work")
        gate.open()
        begun = time.monotonic()
        until(lambda: not left(api), "the queue is empty", 60 + count / 10)
        seconds = time.monotonic() - begun
        done = [pins_done(server) for server in workers]
        assert sum(done) == asked
        assert min(done) > 0, "one worker did it all"
        assert Counter(call.argument for call in proxy.calls if call.command == "pin/add") == (
            Counter(cids)
        )
        check_invariants(api.services.database, here.pins().keys())
    print(f"{count} pins by {done} in {seconds:.1f} s: {count / seconds:.0f}/s")  # noqa: T201


def random_files(count: int) -> list[bytes]:
    """Small ones."""
    return [os.urandom(64) for _ in range(count)]


def left(server: Server) -> int:
    """Pins that are not pinned yet."""
    with server.services.database.session_scope(write=False) as session:
        return session.scalar(select(func.count()).where(Pin.status != "pinned")) or 0


def leased(server: Server) -> int:
    """Pins that are worked on."""
    with server.services.database.session_scope(write=False) as session:
        return session.scalar(select(func.count()).where(Pin.lease_until.is_not(None))) or 0


def pins_done(server: Server) -> int:
    """How many a worker has brought to their end."""
    return int(server.count("on_api_pins_ended_total", outcome="pinned"))
