"""Pins that go to the node together: each has its own end, whatever becomes of the others."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from sqlalchemy import select, update

from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.models import LeasedPin, Pin, User
from on_api.core.models.database import new_id
from on_api.core.services.pins.pins import PinRequest
from on_api.core.setting_groups import GcSettings, WorkerSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Server
from on_api.tests.testing.bundles import beside
from on_api.tests.testing.deadline import until
from on_api.tests.testing.invariants import check_invariants
from on_api.tests.testing.network import Peer
from on_api.tests.testing.rpc_proxy import RpcProxy, held_rpc
from on_api.tests.worker.conftest import account_of, ended, new_cid, pin
from on_api.worker.pin_batches import MOST_PINS
from on_api.worker.pinning import BATCHES

SIZE = 1000
"""Bytes of each small file."""


class Bench:
    """An API that does nothing by itself, and the worker that comes later."""

    def __init__(self, api: Server, here: Peer, proxy: RpcProxy) -> None:
        self.api, self.here, self.proxy = api, here, proxy

    @contextmanager
    def working(self) -> Iterator[None]:
        """A worker, behind the proxy."""
        changes = {
            "ipfs": self.here.ipfs.model_copy(update={"rpc_url": self.proxy.url}),
            "worker": WorkerSettings(poll=0.2, lease_seconds=5),
        }
        with Server(self.api.settings.model_copy(update=changes)):
            yield

    def lay_down(self, count: int) -> list[str]:
        """Small files on the node, unpinned."""
        return self.here.add_many([os.urandom(SIZE) for _ in range(count)])

    def ask(self, account: Account, cids: Sequence[str]) -> list[str]:
        """For pins, in one transaction; returns their ids."""
        with self.api.services.database.session_scope() as session:
            requests = [PinRequest(cid) for cid in cids]
            made = self.api.services.pins.add_many(session, uuid.UUID(account.id), requests)
            return [str(pin.id) for pin in made]

    def leased(self, account: Account) -> int:
        """How many pins of an account are worked on."""
        mine = (Pin.user_id == uuid.UUID(account.id), Pin.lease_until.is_not(None))
        with self.api.services.database.session_scope(write=False) as session:
            return len(session.scalars(select(Pin.id).where(*mine)).all())

    def listed(self) -> Sequence[str]:
        """CIDs that are to be unpinned unless they become somebody's."""
        with self.api.services.database.session_scope(write=False) as session:
            return session.scalars(select(LeasedPin.cid)).all()

    def check(self) -> None:
        """All is at rest and in agreement."""
        until(lambda: not self._any_lease(), "nothing is worked on")
        check_invariants(self.api.services.database, self.here.pins().keys())
        report = beside(
            self.api.settings, lambda services: services.fsck.run(repair=False, walk=False)
        )
        assert not report.troubles, report.findings

    def _any_lease(self) -> bool:
        with self.api.services.database.session_scope(write=False) as session:
            return session.scalar(select(Pin.id).where(Pin.lease_until.is_not(None))) is not None


@pytest.fixture
def bench(
    here: Peer, settings_for: Callable[..., Settings], new_database: DatabaseMaker
) -> Iterator[Bench]:
    """On either database."""
    settings = settings_for(
        new_database(),
        ipfs=here.ipfs,
        worker=WorkerSettings(embedded=False),
        gc=GcSettings(grace=3600, interval=0),
    )
    with Server(settings) as api, held_rpc(str(here.ipfs.rpc_url)) as proxy:
        yield Bench(api, here, proxy)


def test_each_has_its_own_end(bench: Bench, here: Peer) -> None:
    """Missing, with a hole, removed meanwhile, pinned by somebody else, asked for twice: the others
    are pinned by one call all the same."""
    good = [*bench.lay_down(5), here.add(os.urandom(3 * 2**20), pinned=False)]
    data = os.urandom(2 * 2**20)
    holed = here.add(data, pinned=False)
    here.blocks.take([node.cid for node in build_file(data).walk()][-1])
    [theirs, removed] = bench.lay_down(2)
    here.rpc("pin/add", {"arg": theirs, "name": "theirs"})
    with account_of(bench.api) as ada, account_of(bench.api) as ben:
        ids = bench.ask(ada, [*good, good[0], holed, theirs, removed, new_cid()])
        others = bench.ask(ben, good[:2])
        gate = bench.proxy.hold("pin/add")
        with bench.working():
            gate.wait_until_reached()
            gone = ids.pop(-2)
            assert ada.client.delete(f"/v1/pins/{gone}").status_code == 202
            gate.open()
            ends = [ended(ada, pin_id)["status"] for pin_id in ids]
            assert ends == ["pinned"] * 7 + ["failed", "pinned", "failed"]
            assert [ended(ben, pin_id)["status"] for pin_id in others] == ["pinned"] * 2
            bench.check()
        on_node = here.pins()
        assert on_node[theirs] == "theirs"
        assert removed not in on_node
        assert len({on_node[cid] for cid in good[2:]}) == 1, "they did not go together"
        assert [bench.proxy.count("pin/add", cid) for cid in good] == [1] * len(good)


def test_a_quota_that_holds_for_some(bench: Bench, here: Peer) -> None:
    """Lowered while the node pins: as many as it allows are kept, of the others the node keeps
    nothing."""
    cids = bench.lay_down(6)
    with account_of(bench.api) as ada:
        ids = bench.ask(ada, cids)
        gate = bench.proxy.hold("pin/add")
        with bench.working():
            gate.wait_until_reached()
            with bench.api.services.database.session_scope() as session:
                session.get_one(User, uuid.UUID(ada.id)).storage_quota = 3 * SIZE + 1
            gate.open()
            assert sorted(ended(ada, each)["status"] for each in ids) == (
                ["failed"] * 3 + ["pinned"] * 3
            )
            bench.check()
            until(lambda: len(here.pins().keys() & set(cids)) == 3, "the others are let go of", 60)


@pytest.mark.parametrize("answer", [False, True], ids=["unheard", "done"])
def test_a_call_whose_answer_is_lost(bench: Bench, here: Peer, answer: bool) -> None:
    """Whether the node has pinned them or not: each is looked for, and pinned once."""
    cids = bench.lay_down(3)
    with account_of(bench.api) as ada:
        ids = bench.ask(ada, cids)
        bench.proxy.cut("pin/add", answer=answer)
        with bench.working():
            until(lambda: bench.proxy.count("pin/add", cids[-1]) > 0, "they went together")
            bench.proxy.mend()
            assert [ended(ada, pin_id)["status"] for pin_id in ids] == ["pinned"] * 3
            bench.check()
    assert set(cids) <= here.pins().keys()


@pytest.mark.parametrize("count", [1, 3], ids=["alone", "together"])
@pytest.mark.parametrize("goes", ["pins", "account"])
def test_interrupted_and_then_removed(bench: Bench, here: Peer, count: int, goes: str) -> None:
    """The node has pinned them for their first attempt, which is interrupted; then their user
    deletes them, or goes: nothing stays pinned."""
    cids = bench.lay_down(count)
    with account_of(bench.api) as ada, account_of(bench.api, admin=True) as admin:
        ids = bench.ask(ada, cids)
        gate = bench.proxy.hold("pin/add", answer=True)
        with bench.working():
            gate.wait_until_reached()
            until(lambda: set(cids) <= here.pins().keys(), "the node has pinned them")
        gate.open()
        if goes == "account":
            assert admin.client.delete(f"/v1/users/{ada.id}").status_code == 202
        else:
            for pin_id in ids:
                assert ada.client.delete(f"/v1/pins/{pin_id}").status_code == 202
        with bench.working():
            until(lambda: not here.pins().keys() & set(cids), "nothing stays pinned", 60)
            bench.check()


def test_what_has_another_ones_name_is_listed_before_the_node_has_it(bench: Bench) -> None:
    """A kill may come at any moment after that, and all of them may be deleted."""
    cids = bench.lay_down(3)
    with account_of(bench.api) as ada:
        ids = bench.ask(ada, cids)
        gate = bench.proxy.hold("pin/add")
        with bench.working():
            gate.wait_until_reached()
            listed = bench.listed()
            assert len(listed) == 2
            assert set(listed) < set(cids)
            gate.open()
            assert [ended(ada, pin_id)["status"] for pin_id in ids] == ["pinned"] * 3
            assert bench.listed() == []
            bench.check()


def test_a_lease_that_is_lost(bench: Bench) -> None:
    """While the node pins: who has it now says what becomes of it; the others are recorded."""
    cids = bench.lay_down(3)
    with account_of(bench.api) as ada:
        ids = bench.ask(ada, cids)
        gate = bench.proxy.hold("pin/add")
        with bench.working():
            gate.wait_until_reached()
            with bench.api.services.database.session_scope() as session:
                lost = update(Pin).where(Pin.id == uuid.UUID(ids[1]))
                session.execute(lost.values(lease_token=new_id()))
            gate.open()
            assert [ended(ada, ids[place])["status"] for place in (0, 2)] == ["pinned"] * 2
            # Its new owner never comes; when that lease has ended it is taken once more.
            assert ended(ada, ids[1])["status"] == "pinned"
            bench.check()


def test_a_place_for_everybody(bench: Bench) -> None:
    """While the node is busy with more pins of one user than there are places, another one's are
    begun."""
    with account_of(bench.api) as ada, account_of(bench.api) as ben:
        bench.ask(ada, bench.lay_down(BATCHES * MOST_PINS + 1))
        late = bench.lay_down(2)
        # Waited for longer than anything that is asked before it.
        gate = bench.proxy.hold("pin/add")
        with bench.working():
            until(lambda: bench.leased(ada) == (BATCHES - 1) * MOST_PINS, "one has their share")
            ids = [pin(ben, late[0])]
            until(lambda: bench.leased(ben) == 1, "the other one is begun")
            ids.append(pin(ben, late[1]))
            until(lambda: bench.leased(ben) == 2, "and goes on beside the first")
            gate.open()
            assert [ended(ben, each)["status"] for each in ids] == ["pinned"] * 2
