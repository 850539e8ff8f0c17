"""Many at once: more than there are threads, for the same row, beside the very slow. All are
served, none waits for the slow ones, no connection is held by them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import httpx
import pytest

from on_api.tests.conftest import Account, Server
from on_api.tests.testing.plain_http import NO_TLS

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
UPLOADS = 200


async def trickle(until: asyncio.Event) -> AsyncIterator[bytes]:
    """About a kilobyte a second, until told."""
    yield b"x" * 1000
    while not until.is_set():
        yield b"x" * 100
        await asyncio.sleep(0.1)  # the pace is the thing under test


async def test_many_uploads_beside_slow_clients(server: Server, alice: Account) -> None:
    """200 of 1 MiB, as bodies, forms and private files, while one trickles in and one is read at
    10 kB/s."""
    database = server.services.database
    large = alice.upload(os.urandom(20 * MIB), "large")
    idle = database.connections_in_use()
    done = asyncio.Event()
    async with httpx.AsyncClient(
        base_url=server.url,
        headers={"Authorization": f"Bearer {alice.key}"},
        limits=httpx.Limits(max_connections=None),
        timeout=120,
        verify=NO_TLS,
        trust_env=False,
    ) as client:

        async def read_slowly() -> int:
            received = 0
            async with client.stream("GET", f"/v1/files/{large['id']}/content") as answer:
                async for chunk in answer.aiter_raw(1000):
                    received += len(chunk)
                    if not done.is_set():
                        await asyncio.sleep(0.1)  # the same
            return received

        slow_upload = asyncio.create_task(client.put("/v1/files?name=slow", content=trickle(done)))
        slow_download = asyncio.create_task(read_slowly())
        # Both stream by now, and hold nothing of the pool.
        async with asyncio.timeout(30):
            while server.services.metrics.in_flight < 2:
                await asyncio.sleep(0.01)
            while database.connections_in_use() > idle:
                await asyncio.sleep(0.01)

        async def upload(number: int) -> int:
            body = os.urandom(MIB)
            if number % 3 == 0:
                answer = await client.post("/v1/files", files={"file": (str(number), body)})
            else:
                query = {"name": str(number), "visibility": ("public", "private")[number % 3 - 1]}
                answer = await client.put("/v1/files", params=query, content=body)
            return answer.status_code

        answers = await asyncio.gather(*(upload(number) for number in range(UPLOADS)))
        assert answers == [201] * UPLOADS
        assert not slow_upload.done()
        assert not slow_download.done()
        done.set()
        assert (await slow_upload).status_code == 201
        assert await slow_download == 20 * MIB
        count = (await client.get("/v1/files")).json()["count"]
    assert count == UPLOADS + 2
    async with asyncio.timeout(30):  # the workers' threads have one now and then
        while database.connections_in_use() > idle:
            await asyncio.sleep(0.01)


async def test_more_changes_at_once_than_threads(server: Server, alice: Account) -> None:
    """Of one row, and of rows that don't exist yet. Who has the lock must not need a thread while
    all threads wait for it."""
    changes = 3 * server.settings.threads
    url = f"/v1/files/{alice.upload(b'x')['id']}"
    async with httpx.AsyncClient(
        base_url=server.url,
        headers={"Authorization": f"Bearer {alice.key}"},
        limits=httpx.Limits(max_connections=None),
        timeout=120,
        verify=NO_TLS,
        trust_env=False,
    ) as client:
        renamed = await asyncio.gather(
            *(client.patch(url, json={"name": str(number)}) for number in range(changes))
        )
        made = await asyncio.gather(
            *(
                client.post("/v1/keys", json={"name": "one of many", "scopes": ["files:read"]})
                for _ in range(changes)
            )
        )
    assert {answer.status_code for answer in renamed} == {200}
    assert {answer.status_code for answer in made} == {201}
