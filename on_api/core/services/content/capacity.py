"""Free space for the node: its own limit and the disk below it, checked at most every few
seconds."""

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
"""Seconds for which a check is trusted; `min_free` should be more than a store can grow
meanwhile."""


class Capacity:
    """Guard that refuses uploads for which there is no space."""

    def __init__(self, node: IpfsNode, settings: Settings) -> None:
        self._node = node
        self._min_free = settings.node.min_free
        # The disk of a node that on-api does not run can't be checked.
        self._disk = settings.home if settings.manages_node else None
        self._free: int | None = None
        """Free bytes; None while unknown."""
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()

    async def require(self, size: int) -> None:
        """Raise `InsufficientStorage` unless `size` more bytes leave `min_free` over.

        Does not raise when the node can't be asked: the upload itself will fail with the reason.
        """
        await self._look_again()
        if self._free is None:
            return
        if self._free - size < self._min_free:
            raise InsufficientStorage
        # Counts as used until the next check, since the upload is on its way.
        self._free -= size

    async def bytes_left(self) -> int | None:
        """Return the bytes that may still be stored, 0 or less when uploads are refused; None while
        unknown."""
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
            # Callers that wait for this check must not ask a hanging node one after the other.
            self._free, self._looked_at = None, time.monotonic()
            return
        self._free = stat.storage_max - stat.size
        if self._disk is not None:
            self._free = min(self._free, _free_bytes(self._disk))
        self._looked_at = time.monotonic()


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free
