"""Small uploads that come together: one bundle, one pin, one transaction; and everything that may
become of them after."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import httpx
import pytest
from sqlalchemy import func, select

from on_api.core.models import Content, File, Holding, Lease, UserUsage
from on_api.core.models.content import ABSENT, PINNED
from on_api.core.services.container import Services
from on_api.core.services.node import connect_node
from on_api.core.setting_groups import GcSettings, WorkerSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Server
from on_api.worker.unpinning import Unpinner

T = TypeVar("T")


@pytest.fixture(scope="module")
def calm(
    new_database: DatabaseMaker, kubo: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server whose worker does nothing by itself."""
    from on_api.tests.conftest import Kubo, make_settings

    assert isinstance(kubo, Kubo)
    settings = make_settings(
        tmp_path_factory.mktemp("home"),
        new_database(),
        ipfs=kubo.ipfs,
        gc=GcSettings(interval=0),
        worker=WorkerSettings(embedded=False),
    )
    with Server(settings) as running:
        yield running


@pytest.fixture
def user(calm: Server) -> Iterator[Account]:
    """Somebody there."""
    account = calm.new_user()
    with account.client:
        yield account


def send_together(
    server: Server, sent: Sequence[tuple[Account, bytes]], **query: str
) -> list[httpx.Response]:
    """Uploads that come at the same moment; the answers in their order."""

    async def run() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=server.url, timeout=60, trust_env=False, limits=limits
        ) as client:

            async def put(account: Account, data: bytes) -> httpx.Response:
                headers = {"Authorization": f"Bearer {account.key}"}
                params = {"name": "small", **query}
                return await client.put("/v1/files", params=params, content=data, headers=headers)

            return await asyncio.gather(*(put(*each) for each in sent))

    return asyncio.run(run())


def beside(server: Server, work: Callable[[Services], Awaitable[T]]) -> T:
    """Something done by another process's services."""

    async def run() -> T:
        services = Services.build(server.settings, connect_node(server.settings))
        try:
            return await work(services)
        finally:
            await services.close()

    return asyncio.run(run())


def test_thirty_two_at_once(calm: Server) -> None:
    """All readable, all pinned by a bundle or by themselves, charged to whose they are."""
    accounts = [calm.new_user() for _ in range(2)]
    sent = [(accounts[n % 2], os.urandom(1000 + n)) for n in range(32)]
    answers = send_together(calm, sent)
    assert {answer.status_code for answer in answers} == {201}
    for (account, data), answer in zip(sent, answers, strict=True):
        got = account.client.get(f"/v1/files/{answer.json()['id']}/content")
        assert got.content == data
    cids = [answer.json()["cid"] for answer in answers]
    with calm.services.database.session_scope(write=False) as session:
        roots = dict(
            session.execute(
                select(Content.cid, Content.pin_root_id).where(Content.cid.in_(cids))
            ).all()
        )
    bundled = [cid for cid, root in roots.items() if cid != root]
    assert len(bundled) >= 16, "they went one by one"

    async def look(services: Services) -> None:
        for root in set(roots.values()):
            assert await services.node.pin_status(root) is not None

    beside(calm, look)
    for n, account in enumerate(accounts):
        usage = account.client.get("/v1/users/me/usage").json()
        assert usage["storage"]["bytes"] == sum(len(data) for _, data in sent[n::2])
        account.client.close()
