"""The life of content against a small model: whatever two users and the worker do, in any order,
what is held can be read and what nobody holds is freed in the end."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import booleans, sampled_from

from on_api.core.errors import BlocksMissing
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.ipfs.port import StoredUnpinned
from on_api.core.services.accounts.access import Principal
from on_api.core.services.container import Services
from on_api.core.services.content.leases import UPLOAD
from on_api.core.services.content.reservations import Announced
from on_api.core.services.upkeep.node import connect_node
from on_api.core.setting_groups import GcSettings, WorkerSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Server
from on_api.tests.testing.deadline import until
from on_api.worker.unpinning import Unpinner

T = TypeVar("T")

# One raw block, several, and two files that share leaves.
_BYTES = random.Random(5).randbytes(3 * 1024 * 1024)
PAYLOADS = [_BYTES[:100], _BYTES[: 3 * 1024 * 1024], _BYTES[: 2 * 1024 * 1024], b""]
CIDS = [build_file(data).cid for data in PAYLOADS]

users = sampled_from([0, 1])
payloads = sampled_from(range(len(PAYLOADS)))


class ContentLife(RuleBasedStateMachine):
    """`files` and `pins` are what the model holds: id → payload."""

    make_settings: Callable[[], Settings]
    all_files = Bundle("files")
    all_pins = Bundle("pins")

    def __init__(self) -> None:
        super().__init__()
        self.settings = type(self).make_settings()
        self.server = Server(self.settings).__enter__()
        self.accounts: list[Account] = [self.server.new_user() for _ in range(2)]
        self.files: dict[tuple[int, str], int] = {}
        self.pins: dict[tuple[int, str], int] = {}
        self.payload_of: dict[tuple[int, str], int] = {}
        """Of every file there ever was."""
        self.changed = False

    @rule(target=all_files, user=users, payload=payloads)
    def upload(self, user: int, payload: int) -> tuple[int, str]:
        """A file."""
        return self._upload(user, payload)

    @rule(target=all_files, key=all_files)
    def upload_by_the_other(self, key: tuple[int, str]) -> tuple[int, str]:
        """What one user has, or had, comes from the other one too."""
        return self._upload(1 - key[0], self.payload_of[key])

    @rule(key=consumes(all_files))
    def delete_file(self, key: tuple[int, str]) -> None:
        """One reference less."""
        assert self.accounts[key[0]].client.delete(f"/v1/files/{key[1]}").status_code == 204
        del self.files[key]
        self.changed = True

    @rule(target=all_pins, user=users, payload=payloads)
    def pin(self, user: int, payload: int) -> tuple[int, str]:
        """Pinned at once where somebody holds it; else only if the blocks are still there."""
        answer = self.accounts[user].client.post("/v1/pins", json={"cid": CIDS[payload]})
        return self._settled(user, payload, answer.json(), held=self._is_held(payload))

    @rule(target=all_pins, key=consumes(all_pins), payload=payloads)
    def replace_pin(self, key: tuple[int, str], payload: int) -> object:
        """The old pin is gone at once, whatever comes of the new one."""
        user, pin_id = key
        if key not in self.pins:
            return multiple()
        held = self._is_held(payload)
        client = self.accounts[user].client
        answer = client.post(f"/v1/pins/{pin_id}", json={"cid": CIDS[payload]})
        assert answer.status_code == 202, answer.text
        assert client.get(f"/v1/pins/{pin_id}").status_code == 404
        del self.pins[key]
        return self._settled(user, payload, answer.json(), held=held)

    @rule(key=consumes(all_pins))
    def delete_pin(self, key: tuple[int, str]) -> None:
        """One reference less."""
        answer = self.accounts[key[0]].client.delete(f"/v1/pins/{key[1]}")
        assert answer.status_code == 202
        self.pins.pop(key, None)
        self.changed = True

    @rule(user=users, payload=payloads)
    def crash_between_the_nodes_answer_and_ours(self, user: int, payload: int) -> None:
        """An upload that was stored and never recorded leaves a pin of ours and a dead lease."""

        async def crash(services: Services) -> None:
            principal = services.authenticator.authenticate(self.accounts[user].key)
            await _store_and_die(services, principal, PAYLOADS[payload])

        self._beside(crash)
        self.changed = True

    # One rule for all of it, and only after something has changed: else most steps would be these.
    @precondition(lambda self: self.changed)
    @rule(restart=booleans(), collect=booleans())
    def free_what_nobody_holds(self, restart: bool, collect: bool) -> None:
        """The unpin job without its grace, garbage collection, another process."""
        self.changed = False
        self._beside(_unpin)
        if collect:
            assert self._beside(_collect) == "collected"
        if restart:
            self._restart()

    @invariant()
    def what_is_held_can_be_read(self) -> None:
        """Every file gives its bytes, every pin's DAG is whole."""
        for (user, file_id), payload in self.files.items():
            content = self.accounts[user].client.get(f"/v1/files/{file_id}/content")
            assert content.content == PAYLOADS[payload]
        pinned = {CIDS[payload] for payload in self.pins.values()}

        async def look(services: Services) -> None:
            for cid in pinned:
                assert await services.node.pin_status(cid) is not None
                await services.node.dag_stat(cid)

        self._beside(look)

    def teardown(self) -> None:
        """With everything let go of, nothing is left on the node."""
        try:
            for key in list(self.files):
                self.delete_file(key)
            for key in list(self.pins):
                self.delete_pin(key)

            async def free(services: Services) -> None:
                await _unpin(services)
                report = await services.fsck.run(repair=True, walk=True)
                # Freshly dead leases are within their slack: all else is mended.
                assert report.clean, report.findings
                assert await _collect(services) == "collected"
                for payload, cid in enumerate(CIDS):
                    if PAYLOADS[payload]:
                        with pytest.raises(BlocksMissing):
                            await services.node.dag_stat(cid)

            self._beside(free)
        finally:
            self.server.__exit__()
            for account in self.accounts:
                account.client.close()

    def _upload(self, user: int, payload: int) -> tuple[int, str]:
        """The same bytes have the same CID for everyone."""
        file = self.accounts[user].upload(PAYLOADS[payload])
        assert file["cid"] == CIDS[payload]
        key = (user, str(file["id"]))
        self.files[key] = self.payload_of[key] = payload
        self.changed = True
        return key

    def _restart(self) -> None:
        self.server.__exit__()
        for account in self.accounts:
            account.client.close()
        self.server = Server(self.settings).__enter__()
        self.accounts = [replace(old, client=self.server.client(old.key)) for old in self.accounts]

    def _is_held(self, payload: int) -> bool:
        return payload in {*self.files.values(), *self.pins.values()}

    def _settled(
        self, user: int, payload: int, answer: dict[str, str], *, held: bool
    ) -> tuple[int, str]:
        pin_id = answer["requestid"]
        client = self.accounts[user].client

        def status() -> str | None:
            now = str(client.get(f"/v1/pins/{pin_id}").json()["status"])
            return now if now in {"pinned", "failed"} else None

        ended = until(status, "the pin has an end", 30)
        key = (user, pin_id)
        if ended == "pinned":
            self.pins[key] = payload
        else:
            assert not held, client.get(f"/v1/pins/{pin_id}").text
        return key

    def _beside(self, work: Callable[[Services], Awaitable[T]]) -> T:
        """Run something with the services of another process."""

        async def run() -> T:
            services = Services.build(self.settings, connect_node(self.settings))
            try:
                return await work(services)
            finally:
                await services.close()

        return asyncio.run(run())


async def _unpin(services: Services) -> None:
    unpinner = Unpinner(
        services.database,
        services.reconciler,
        services.metrics,
        grace=timedelta(0),
        life=timedelta(seconds=30),
    )
    while await unpinner.step():
        pass


async def _collect(services: Services) -> str:
    return (await services.garbage.collect(20)).outcome


async def _store_and_die(services: Services, principal: Principal, data: bytes) -> None:
    leases = services.leases
    lease = await asyncio.to_thread(leases.open, UPLOAD, principal, Announced())

    async def source() -> object:
        yield data

    lease.unsure = True
    # The worker may just be removing the same content: an upload would pin it again and go on.
    with contextlib.suppress(StoredUnpinned):
        await services.node.add(source(), pin_name=lease.pin_name)  # type: ignore[arg-type]
    await asyncio.to_thread(leases.abandon, lease)


def _walk(life: ContentLife, steps: int, seed: int) -> None:
    """Steps drawn so that the two users meet: hypothesis needs far more of them to get there."""
    draw = random.Random(seed)

    def user_and_payload() -> tuple[int, int]:
        return draw.randrange(2), draw.choice([0, 0, 1, 2, 3])

    for _ in range(steps):
        step = draw.choices(range(7), weights=[5, 3, 3, 2, 2, 1, 3])[0]
        if step == 0:
            life.upload(*user_and_payload())
        elif step == 1:
            life.pin(*user_and_payload())
        elif step == 2 and life.files:
            life.delete_file(draw.choice(list(life.files)))
        elif step == 3 and life.pins:
            life.delete_pin(draw.choice(list(life.pins)))
        elif step == 4 and life.pins:
            life.replace_pin(draw.choice(list(life.pins)), draw.randrange(len(PAYLOADS)))
        elif step == 5:
            life.crash_between_the_nodes_answer_and_ours(*user_and_payload())
        elif step == 6:
            life.free_what_nobody_holds(restart=draw.random() < 0.2, collect=draw.random() < 0.5)
        life.what_is_held_can_be_read()


@pytest.fixture(autouse=True)
def life_settings(new_database: DatabaseMaker, settings_for: Callable[..., Settings]) -> None:
    """A database of its own for each life; the worker frees nothing by itself."""
    ContentLife.make_settings = staticmethod(
        lambda: settings_for(
            new_database(), gc=GcSettings(interval=0), worker=WorkerSettings(poll=0.2)
        )
    )


def test_content_lives_as_long_as_it_is_held() -> None:
    """One life."""
    life = ContentLife()
    try:
        _walk(life, steps=60, seed=11)
    finally:
        life.teardown()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_content_lives_as_long_as_it_is_held_in_any_order() -> None:
    """Hundreds of steps, and the shortest way to a failure when there is one."""
    for seed in range(10):
        life = ContentLife()
        try:
            _walk(life, steps=150, seed=seed)
        finally:
            life.teardown()
    run_state_machine_as_test(
        ContentLife,
        settings=settings(
            max_examples=25,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
