"""Whether the node has room: its own limit and the disk below it, looked at every few seconds at
most."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from pathlib import Path

from on_api.core.errors import InsufficientStorage, NodeError
from on_api.core.ipfs.port import IpfsNode
from on_api.core.settings import Settings

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""A look is trusted so long: a store doesn't fill up in less by more than `min_free` should allow
for."""


class Capacity:
    """Refuses uploads for which there is no room."""

    def __init__(self, node: IpfsNode, settings: Settings) -> None:
        self._node = node
        self._min_free = settings.node.min_free
        # The disk of a node that somebody else runs can't be seen from here.
        self._disk = settings.home if settings.manages_node else None
        self._free: int | None = None
        """Bytes; None while nobody knows."""
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()

    async def require(self, size: int) -> None:
        """Raise `InsufficientStorage` unless `size` more bytes leave `min_free` over.

        A node that can't be asked is not refused here: the upload itself will say why.
        """
        await self._look_again()
        if self._free is None:
            return
        if self._free - size < self._min_free:
            raise InsufficientStorage
        # Until the next look: what was just allowed is on its way.
        self._free -= size

    async def room(self) -> int | None:
        """Bytes that may still be stored, none or fewer when uploads are refused; None while nobody
        knows."""
        await self._look_again()
        return None if self._free is None else self._free - self._min_free

    async def _look_again(self) -> None:
        if time.monotonic() - self._looked_at > LOOK_SECONDS:
            async with self._looking:
                if time.monotonic() - self._looked_at > LOOK_SECONDS:
                    await self._look()

    async def _look(self) -> None:
        try:
            stat = await self._node.repo_stat()
        except NodeError:
            # Those who wait for this look must not ask a node that hangs one after the other.
            self._free, self._looked_at = None, time.monotonic()
            return
        self._free = stat.storage_max - stat.size
        if self._disk is not None:
            self._free = min(self._free, _free_bytes(self._disk))
        self._looked_at = time.monotonic()


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free
