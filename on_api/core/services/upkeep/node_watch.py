"""Facts about the node that are asked now and then rather than in each request: its addresses, the
number of pins.

The addresses are kept in the database too, so that pins can be listed while the node is down.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from anyio import to_thread
from sqlalchemy import func, select

from on_api.core.errors import NodeUnavailable, OnApiError
from on_api.core.ipfs.formats.multiaddr import Multiaddr
from on_api.core.ipfs.port import IpfsNode
from on_api.core.models import Content, Database, Deployment
from on_api.core.models.content import PINNED
from on_api.core.net.addresses import is_public
from on_api.core.services.content.pin_names import deployment
from on_api.core.settings import Settings

logger = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
COUNT_WAIT_SECONDS = 0.5
"""Seconds that a request waits for a count of all contents, which reads every one."""
COUNT_PAUSE_FACTOR = 100
"""A count is repeated no sooner than after so many times the time that it took."""
FIRST_LOOK_SECONDS = 1.0
"""Seconds between looks while the addresses have never been known."""
FIRST_LOOK_TIMEOUT_SECONDS = 10.0
"""Seconds that a request waits for the first look to end."""
MAX_DELEGATES = 20


class NodeWatch:
    """Cache of the last answers. `run` refreshes them until it is cancelled."""

    def __init__(self, settings: Settings, database: Database, node: IpfsNode) -> None:
        self._database = database
        self._node = node
        self._fixed = settings.pins.delegates
        self._delegates: Sequence[str] = self._fixed
        self._has_looked = asyncio.Event()
        self._pinned: int | None = None
        self._counting: asyncio.Task[None] | None = None
        self._count_due = float("-inf")

    async def delegates(self) -> Sequence[str]:
        """Return 1 to 20 addresses at which clients find the node, each ending in its identity.

        Right after the start it waits for the first look. Raises `NodeUnavailable` while they have
        never been known.
        """
        if not self._delegates:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_looked.wait(), FIRST_LOOK_TIMEOUT_SECONDS)
        if not self._delegates:
            raise NodeUnavailable
        return self._delegates

    async def pinned(self) -> int | None:
        """Return the number of pins that the node keeps for us, counted on demand. If counting is
        slow, or fails, returns the last count; None before the first."""
        if self._counting is None and time.monotonic() >= self._count_due:
            self._counting = asyncio.create_task(self._count_anew())
        if self._counting is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._counting), COUNT_WAIT_SECONDS)
        return self._pinned

    async def _count_anew(self) -> None:
        began = time.monotonic()
        try:
            self._pinned = await to_thread.run_sync(self._count)
        except OnApiError as error:
            logger.warning("could not count the pins: %s", error.details)
        finally:
            self._count_due = time.monotonic() + COUNT_PAUSE_FACTOR * (time.monotonic() - began)
            self._counting = None

    async def run(self) -> None:
        """Look at the node repeatedly, until cancelled."""
        while True:
            try:
                await self.look()
            except OnApiError as error:
                logger.warning("could not check the node: %s", error.details)
            self._has_looked.set()
            await asyncio.sleep(LOOK_SECONDS if self._delegates else FIRST_LOOK_SECONDS)

    async def look(self) -> None:
        """Look at the node once. Raises a `NodeError` or `DatabaseUnavailable`."""
        if not self._delegates:
            self._delegates = await to_thread.run_sync(self._recall)
        if not self._fixed:
            found = best_addresses(await self._node.addresses())
            if found and found != self._delegates:
                await to_thread.run_sync(self._remember, found)
                self._delegates = found

    def _recall(self) -> Sequence[str]:
        with self._database.session_scope(write=False) as session:
            return session.scalar(select(Deployment.delegates)) or ()

    def _remember(self, addresses: list[str]) -> None:
        with self._database.session_scope() as session:
            deployment(session).delegates = addresses

    def _count(self) -> int:
        with self._database.session_scope(write=False) as session:
            pins = (Content.state == PINNED, Content.pin_root_id == Content.cid)
            return session.scalar(select(func.count()).where(*pins)) or 0


def best_addresses(addresses: Sequence[str]) -> list[str]:
    """Return the addresses of the public internet if there are any, else all; at most
    `MAX_DELEGATES`."""
    public = [text for text in addresses if _is_public(text)]
    return list(dict.fromkeys(public or addresses))[:MAX_DELEGATES]


def _is_public(text: str) -> bool:
    multiaddr = Multiaddr.parse(text)
    if multiaddr is None:
        return False
    if multiaddr.kind in {"ip4", "ip6"}:
        return is_public(ipaddress.ip_address(multiaddr.host))
    return True
