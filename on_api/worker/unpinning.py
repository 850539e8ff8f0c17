"""Unpins content that has been unreferenced for longer than the grace."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from anyio import to_thread

from on_api.core.errors import NodeError
from on_api.core.metrics import Metrics
from on_api.core.models import Database
from on_api.core.models.database import new_id
from on_api.core.services.content import bundles, contents, maintenance
from on_api.core.services.content.contents import Removal
from on_api.core.services.content.pin_reconciler import PinReconciler

logger = logging.getLogger(__name__)

BATCH_CONTENTS = 50
THINNING_PAUSE = timedelta(minutes=10)
"""Time until a bundle that could not be dissolved is tried again."""


class Unpinner:
    """Unpins contents one by one. After a crash, the removal's claim expires and is taken again."""

    def __init__(
        self,
        database: Database,
        reconciler: PinReconciler,
        metrics: Metrics,
        *,
        grace: timedelta,
        life: timedelta,
    ) -> None:
        self._database = database
        self._reconciler = reconciler
        self._metrics = metrics
        self._grace = grace
        self._life = life

    async def step(self) -> bool:
        """Unpin a batch of contents that are due. Return whether there was any."""
        gone = await to_thread.run_sync(self._let_go)
        self._metrics.unpinned.inc(gone)
        due = await to_thread.run_sync(self._due)
        for cid in due:
            await self.unpin(cid)
        return bool(due) or gone > 0

    async def unpin(self, cid: str) -> bool:
        """Unpin one content if it is unreferenced. Return whether it was unpinned."""
        removal = await to_thread.run_sync(self._begin, cid)
        if removal is None:
            return False
        try:
            removed = await self._reconciler.remove(removal)
        except NodeError as error:
            # Whether the node has unpinned it is unknown: the claim expires, and it is retried.
            logger.warning("could not unpin %s: %s", cid, error.details)
            return False
        if removed:
            self._metrics.unpinned.inc()
        return removed

    async def thin_out(self) -> bool:
        """Dissolve one thin bundle: its living members get pins of their own. Return whether there
        was one."""
        bundle = await to_thread.run_sync(self._claim_thin)
        if bundle is None:
            return False
        try:
            await self._reconciler.dissolve(bundle, new_id(), lost=False)
        except NodeError as error:
            logger.warning("could not dissolve bundle %s: %s", bundle, error.details)
        return True

    def _let_go(self) -> int:
        with self._database.session_scope(write=False) as session:
            if not contents.any_to_let_go(session, self._grace):
                return 0
        with self._database.session_scope() as session:
            return contents.let_go(session, self._grace, BATCH_CONTENTS)

    def _claim_thin(self) -> str | None:
        with self._database.session_scope(write=False) as session:
            # Pinning would wait for the end of the garbage collection.
            if maintenance.is_under_way(session, maintenance.GARBAGE):
                return None
            if not bundles.any_thin(session):
                return None
        with self._database.session_scope() as session:
            return bundles.claim_thin(session, THINNING_PAUSE)

    def _due(self) -> Sequence[str]:
        with self._database.session_scope(write=False) as session:
            # During garbage collection the node answers only at its end: after the claim expires.
            if maintenance.is_under_way(session, maintenance.GARBAGE):
                return ()
            return contents.removable(session, self._grace, BATCH_CONTENTS)

    def _begin(self, cid: str) -> Removal | None:
        with self._database.session_scope() as session:
            if not maintenance.may_begin(session):
                return None
            return contents.begin_removal(session, cid, grace=self._grace, life=self._life)
