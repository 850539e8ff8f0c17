"""`fsck` as a whole: the checks in the order in which each repair helps the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from anyio import to_thread

from on_api.core.ipfs.port import IpfsNode
from on_api.core.models import Database
from on_api.core.services.accounts.audit import Actor
from on_api.core.services.content.maintenance import FSCK, Turn
from on_api.core.services.content.pin_names import PinNames
from on_api.core.services.content.pin_reconciler import PinReconciler
from on_api.core.services.files.sealed_headers import SealedHeaders
from on_api.core.services.upkeep.fsck import losses
from on_api.core.services.upkeep.fsck.checks import NodeChecks
from on_api.core.services.upkeep.fsck.findings import FsckReport
from on_api.core.services.upkeep.fsck.ledger import check_ledger
from on_api.core.services.upkeep.fsck.losses import LostContent
from on_api.core.services.upkeep.fsck.node_pins import NodePins
from on_api.core.services.upkeep.fsck.private_files import check_private_files
from on_api.core.services.upkeep.fsck.quarantine import Quarantine


class Fsck:
    """Check that database and node agree, while other work goes on. `quarantine`: time for which a
    pin that no row accounts for must have been known before it is ended."""

    def __init__(
        self,
        database: Database,
        node: IpfsNode,
        reconciler: PinReconciler,
        names: PinNames,
        headers: SealedHeaders,
        quarantine: timedelta,
    ) -> None:
        self._headers = headers
        self._quarantine = quarantine
        self._database = database
        self._node = node
        self._reconciler = reconciler
        self._names = names

    async def run(self, *, repair: bool, walk: bool, now: bool = False) -> FsckReport:
        """Run all checks; with `repair` repair what can be, with `now` without quarantine; with
        `walk` read every block.

        Raises `Conflict` while another one runs, a `NodeError` or `DatabaseUnavailable` when it
        can't be done. A run that could not begin because of the node is not recorded.
        """
        await self._node.peer_id()
        report = FsckReport()
        turn = await to_thread.run_sync(Turn, self._database, FSCK)
        result: dict[str, Any] = {"outcome": "failed"}
        try:
            async with turn.kept():
                checks = self._checks(report, repair=repair, fetch=repair)
                quarantine = Quarantine(self._database, self._quarantine)
                await checks.check_states()
                with NodePins() as pins:
                    await pins.fill(self._node)
                    await checks.check_contents(pins, walk=walk)
                    await checks.check_pins(pins, quarantine, now=now)
                await check_private_files(self._database, self._headers, report, repair=repair)
                # Last: a dead lease identifies an orphan.
                await to_thread.run_sync(_add_ledger, self._database, report, repair)
            result = {
                "outcome": "clean" if report.clean else "troubles",
                "troubles": report.troubles,
                "deferred": report.deferred,
                "counts": report.counts,
                "contents": report.contents,
                "walked": walk,
            }
        finally:
            await to_thread.run_sync(turn.end, result)
        return report

    async def restore_pins(self) -> FsckReport:
        """Pin again kept contents whose pins the node has lost. Those that can't be are left as
        `report.troubles`.

        Kubo drops a pin before it renews it, when the same bytes are sent again: killed at that
        moment it comes back without. The blocks stay until a garbage collection. Nothing is
        fetched.
        """
        report = FsckReport()
        checks = self._checks(report, repair=True, fetch=False)
        with NodePins() as pins:
            await pins.fill(self._node)
            await checks.check_contents(pins, walk=False)
        return report

    async def losses(self, report: FsckReport) -> Sequence[LostContent]:
        """Return the losses of users by the contents that a run could not repair."""
        return [
            await to_thread.run_sync(losses.loss_of, self._database, cid, details)
            for cid, details in report.lost.items()
        ]

    async def drop_lost(self, found: Sequence[LostContent], actor: Actor) -> Sequence[LostContent]:
        """Drop references to lost contents, and end these contents. Returns the dropped ones: a
        content that has come back meanwhile stays.

        Raises `Conflict` while a check is under way, a `NodeError` when the node can't be asked.
        """
        turn = await to_thread.run_sync(Turn, self._database, FSCK)
        dropped: list[LostContent] = []
        try:
            async with turn.kept():
                checks = self._checks(FsckReport(), repair=True, fetch=False)
                await self._node.version()  # a node that doesn't answer has lost nothing
                for loss in found:
                    if await checks.is_lost(loss.cid):
                        await to_thread.run_sync(self._drop, loss, actor)
                        await checks.forget(loss.cid)
                        dropped.append(loss)
        finally:
            result = {"outcome": "dropped", "contents": [loss.cid for loss in dropped][:100]}
            await to_thread.run_sync(turn.end, result)
        return dropped

    def _drop(self, loss: LostContent, actor: Actor) -> None:
        for user_id in sorted({each.user_id for each in loss.references}):
            with self._database.session_scope() as session:
                losses.drop(session, loss, user_id, actor)

    def _checks(self, report: FsckReport, *, repair: bool, fetch: bool) -> NodeChecks:
        return NodeChecks(
            self._database,
            self._node,
            self._reconciler,
            self._names,
            report,
            repair=repair,
            fetch=fetch,
        )


def as_document(report: FsckReport) -> dict[str, Any]:
    """Return a report as a document for scripts."""
    document = asdict(report)
    del document["lost"]  # findings include it
    return {"clean": report.clean, **document}


def _add_ledger(database: Database, report: FsckReport, repair: bool) -> None:
    for finding in check_ledger(database, repair=repair):
        report.add(finding)
