"""`fsck` as a whole: the checks in the order in which mending one helps the next."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from anyio import to_thread

from on_api.core.ipfs.client import IpfsNode
from on_api.core.models import Database
from on_api.core.services.fsck.checks import NodeChecks
from on_api.core.services.fsck.findings import Report
from on_api.core.services.fsck.ledger import check_ledger
from on_api.core.services.fsck.node_pins import NodePins
from on_api.core.services.keeper import Keeper
from on_api.core.services.maintenance import FSCK, Turn
from on_api.core.services.pin_names import PinNames


class Fsck:
    """Checks that database and node agree. Others may go on working meanwhile."""

    def __init__(self, database: Database, node: IpfsNode, keeper: Keeper, names: PinNames) -> None:
        self._database = database
        self._node = node
        self._keeper = keeper
        self._names = names

    async def run(self, *, repair: bool, walk: bool) -> Report:
        """Check everything; with `repair` mend what can be; with `walk` read every block.

        Raises `Conflict` while another one runs, a `NodeError` or `DatabaseUnavailable` when it
        can't be done. One that the node didn't let begin is not recorded.
        """
        await self._node.peer_id()
        report = Report()
        turn = await to_thread.run_sync(Turn, self._database, FSCK)
        result: dict[str, Any] = {"outcome": "failed"}
        try:
            async with turn.kept():
                checks = self._checks(report, repair=repair, fetch=repair)
                await checks.check_states()
                with NodePins() as pins:
                    await pins.fill(self._node)
                    await checks.check_contents(pins, walk=walk)
                    await checks.check_pins(pins)
                # Last: a dead lease is what an orphan is told by.
                await to_thread.run_sync(_add_ledger, self._database, report, repair)
            result = {
                "outcome": "clean" if report.clean else "troubles",
                "troubles": report.troubles,
                "counts": report.counts,
                "contents": report.contents,
                "walked": walk,
            }
        finally:
            await to_thread.run_sync(turn.end, result)
        return report

    async def restore_pins(self) -> Report:
        """Pin again what somebody holds and the node has lost its pin on; `report.troubles` are
        left.

        Kubo drops a pin before it renews it, when the same bytes are sent again: killed in that
        moment it comes back without. The blocks are there until a garbage collection. Nothing is
        fetched.
        """
        report = Report()
        checks = self._checks(report, repair=True, fetch=False)
        with NodePins() as pins:
            await pins.fill(self._node)
            await checks.check_contents(pins, walk=False)
        return report

    def _checks(self, report: Report, *, repair: bool, fetch: bool) -> NodeChecks:
        return NodeChecks(
            self._database,
            self._node,
            self._keeper,
            self._names,
            report,
            repair=repair,
            fetch=fetch,
        )


def as_document(report: Report) -> dict[str, Any]:
    """A report for scripts."""
    return {"clean": report.clean, **asdict(report)}


def _add_ledger(database: Database, report: Report, repair: bool) -> None:
    for finding in check_ledger(database, repair=repair):
        report.add(finding)
