"""A node that refuses, hangs, cuts, babbles or is slow, seen from outside.

Each request ends in bounded time with the right error, nothing is lost, nobody else waits, and
then all is well again.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import func, select

from on_api.core.models import Database, Lease
from on_api.core.models.database import database_now
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker, Kubo, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.tcp_proxy import Mood, TcpProxy, proxied

MIB = 1024 * 1024
CUT_SHORT = 0
"""In place of a status: the connection ended before the answer did."""
TIMEOUTS = {"connect_timeout": 2, "control_timeout": 1, "stall_timeout": 2, "finish_timeout": 2}
BOUND = 30
"""Seconds for any request, on any machine: the time-outs that one can meet are 7 together, and what
hangs does so for ever."""


@dataclass
class Way:
    """A server, and what stands between it and its node."""

    server: Server
    proxies: list[TcpProxy]

    def be(self, mood: Mood) -> None:
        """How RPC and gateway behave from now on."""
        for proxy in self.proxies:
            proxy.mood = mood


@pytest.fixture
def way(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings], kubo: Kubo
) -> Iterator[Way]:
    """A server whose ways to its node go through proxies."""
    with ExitStack() as stack:

        def through(url: str | None) -> TcpProxy:
            place = urlsplit(str(url))
            target = (str(place.hostname), int(place.port or 0))
            return stack.enter_context(proxied(lambda: socket.create_connection(target, 5)))

        proxies = [through(kubo.ipfs.rpc_url), through(kubo.ipfs.gateway_url)]
        urls = [f"http://127.0.0.1:{proxy.port}" for proxy in proxies]
        ipfs = kubo.ipfs.model_copy(update={"rpc_url": urls[0], "gateway_url": urls[1], **TIMEOUTS})
        settings = settings_for(new_database(), ipfs=ipfs)
        yield Way(stack.enter_context(Server(settings)), proxies)


def status_of(request: Callable[[], httpx.Response]) -> int:
    """What came of a request, which must have ended in time."""
    started = time.monotonic()
    try:
        status = request().status_code
    except httpx.RemoteProtocolError:
        status = CUT_SHORT
    assert time.monotonic() - started < BOUND
    return status


@pytest.mark.parametrize(
    ("mood", "uploads", "downloads"),
    [
        (Mood.REFUSE, {502, 503}, {502, 503}),
        (Mood.HANG, {504}, {504}),
        (Mood.CUT, {502}, {502}),
        (Mood.CUT_LATE, {201}, {CUT_SHORT}),
        (Mood.GARBAGE, {502}, {502}),
        (Mood.SLOW, {201}, None),
    ],
)
def test_a_bad_node_and_a_good_one_again(
    way: Way, mood: Mood, uploads: set[int], downloads: set[int] | None
) -> None:
    """Ten uploads, then ten more and ten downloads at once, while somebody lists files."""
    account = way.server.new_user()
    data = os.urandom(MIB)
    with account.client as client:
        kept = account.upload(data, "kept")
        content = f"/v1/files/{kept['id']}/content"
        idle = way.server.services.database.connections_in_use()
        way.be(mood)

        def upload(number: int) -> int:
            body = os.urandom(50_000)
            return status_of(lambda: client.put(f"/v1/files?name={number}", content=body))

        waits = []
        with ThreadPoolExecutor(20) as threads:
            answers = [threads.submit(upload, number) for number in range(10)]
            # Later than the node's room was last asked for: these ask again.
            until(lambda: all(answer.done() for answer in answers), "the first ten have ended", 60)
            answers += [threads.submit(upload, number) for number in range(10, 20)]
            reading = [
                threads.submit(status_of, lambda: client.get(content))
                for _ in range(10 if downloads else 0)
            ]
            with way.server.client(account.key) as other:
                while not all(answer.done() for answer in [*answers, *reading]):
                    started = time.monotonic()
                    assert other.get("/v1/files").status_code == 200
                    assert other.get("/healthz").status_code == 200
                    waits.append((time.monotonic() - started) / 2)
        assert {answer.result() for answer in answers} <= uploads
        assert {answer.result() for answer in reading} <= (downloads or set())
        if mood is Mood.HANG:  # the others end before there is anything to wait behind
            assert statistics.median(waits) < min(TIMEOUTS.values())
        way.be(Mood.GOOD)
        until(lambda: client.get("/readyz").status_code == 200, "the node is well", 20)
        stored = sum(answer.result() == 201 for answer in answers)
        assert client.get(content).content == data
        listed = client.get("/v1/files").json()
        assert listed["count"] == 1 + stored
        for item in listed["items"]:
            assert len(client.get(f"/v1/files/{item['id']}/content").content) == item["size"]
        held = client.get("/v1/users/me/usage").json()["storage"]["bytes"]
        assert held >= MIB + stored * 50_000
        assert held < MIB + stored * 50_000 + 1000
        assert client.put("/v1/files?name=after", content=b"after").status_code == 201
        database = way.server.services.database
        until(lambda: database.connections_in_use() <= idle, "the pool is whole")
        # The lease that small uploads share is kept a moment for the next one.
        until(lambda: living_leases(database) == 0, "no lease is left")


def living_leases(database: Database) -> int:
    """How many pieces of work are under way, as the database has it."""
    with database.session_scope(write=False) as session:
        alive = select(func.count()).where(Lease.lease_until > database_now())
        return session.scalar(alive) or 0
