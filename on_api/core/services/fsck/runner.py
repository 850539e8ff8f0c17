"""One run of `fsck`: the checks in the order in which mending one helps the next."""

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


async def run_fsck(
    database: Database,
    node: IpfsNode,
    keeper: Keeper,
    names: PinNames,
    *,
    repair: bool,
    walk: bool,
) -> Report:
    """Check everything; with `repair` mend what can be; with `walk` read every block.

    Others may go on working meanwhile. Raises `Conflict` while another one runs, a `NodeError` or
    `DatabaseUnavailable` when it can't be done.
    """
    report = Report()
    turn = await to_thread.run_sync(Turn, database, FSCK)
    result: dict[str, Any] = {"outcome": "failed"}
    try:
        async with turn.kept():
            checks = NodeChecks(database, node, keeper, names, report, repair=repair, fetch=repair)
            await checks.check_states()
            with NodePins() as pins:
                await pins.fill(node)
                await checks.check_contents(pins, walk=walk)
                await checks.check_pins(pins)
            # Last: a dead lease is what an orphan is told by.
            await to_thread.run_sync(_add_ledger, database, report, repair)
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


async def restore_pins(
    database: Database, node: IpfsNode, keeper: Keeper, names: PinNames
) -> Report:
    """Pin again what somebody holds and the node has lost its pin on; `report.troubles` are left.

    Kubo drops a pin before it renews it, when the same bytes are sent again: killed in that moment
    it comes back without. The blocks are there until a garbage collection. Nothing is fetched.
    """
    report = Report()
    checks = NodeChecks(database, node, keeper, names, report, repair=True, fetch=False)
    with NodePins() as pins:
        await pins.fill(node)
        await checks.check_contents(pins, walk=False)
    return report


def as_document(report: Report) -> dict[str, Any]:
    """A report for scripts."""
    return {"clean": report.clean, **asdict(report)}


def _add_ledger(database: Database, report: Report, repair: bool) -> None:
    for finding in check_ledger(database, repair=repair):
        report.add(finding)
