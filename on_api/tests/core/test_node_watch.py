"""The node's addresses, as the pins' answers give them: asked once, waited for after the start."""

from __future__ import annotations

import asyncio

import pytest

from on_api.core.errors import NodeUnavailable
from on_api.core.ipfs.memory import MemoryNode
from on_api.core.models import Database
from on_api.core.services.upkeep.node_watch import NodeWatch
from on_api.tests.conftest import DatabaseMaker
from on_api.tests.worker.conftest import MakeSettings

ADDRESS = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWJ59N9z5CyLTtcUvzuRQDdGMbGRsUGv4zGbGKGN1Vdzpa"


class SlowNode(MemoryNode):
    """Answers, or fails, once it is let."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.let = asyncio.Event()
        self._error = error

    async def addresses(self) -> list[str]:
        await self.let.wait()
        if self._error is not None:
            raise self._error
        return [ADDRESS]


@pytest.mark.anyio
@pytest.mark.parametrize("error", [None, NodeUnavailable()])
async def test_a_request_right_after_the_start(
    settings_for: MakeSettings, sqlite_database: DatabaseMaker, error: Exception | None
) -> None:
    """It waits for the first look: a client's first pin is no error only because it came early."""
    settings = settings_for(sqlite_database())
    database = Database(settings)
    node = SlowNode(error)
    watch = NodeWatch(settings, database, node)
    running = asyncio.create_task(watch.run())
    asked = asyncio.create_task(watch.delegates())
    try:
        await asyncio.sleep(0)
        assert not asked.done()
        node.let.set()
        if error is None:
            assert await asked == [ADDRESS]
        else:
            with pytest.raises(NodeUnavailable):
                await asked
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        database.dispose()
