"""`on-api fsck`: checks that database and node agree."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from on_api.cli.context import build_services, command_settings, print_json

if TYPE_CHECKING:
    from on_api.core.services.container import Services
    from on_api.core.services.upkeep.fsck.findings import Finding, FsckReport
    from on_api.core.services.upkeep.fsck.losses import LostContent
    from on_api.core.settings import Settings


def fsck(
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair whatever can be repaired.")
    ] = False,
    now: Annotated[
        bool,
        typer.Option(
            "--now", help="With --repair: remove orphaned pins at once, without quarantine."
        ),
    ] = False,
    drop_lost: Annotated[
        bool,
        typer.Option(
            "--drop-lost",
            help="Repair, then list the files and pins whose content is lost, and delete them after"
            " confirmation.",
        ),
    ] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="With --drop-lost: delete without asking for confirmation."),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Check pins and counters only; do not read blocks.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Check that all stored content is pinned and complete, and that no pin is orphaned.

    It is safe to run this while on-api is running. Pins that other programs made on the node are
    reported and never changed. An orphaned pin of on-api is one that no database row refers to:
    --repair removes it once it is found again at least a day after it was first found
    (ON_API_GC__QUARANTINE), since the database may have been restored from an old backup. Exits
    with code 1 if there are problems (with --repair: if any are left).
    """
    if now and not repair:
        raise typer.BadParameter("--now requires --repair.")
    settings = command_settings(warns=False)
    if drop_lost:
        asyncio.run(_drop_lost(settings, walk=not quick, yes=yes, as_json=as_json))
        return
    report = asyncio.run(_check(settings, repair=repair, walk=not quick, now=now))
    if as_json:
        from on_api.core.services.upkeep.fsck.runner import as_document

        print_json(as_document(report))
    else:
        print_report(report)
    if not report.clean:
        raise typer.Exit(1)


async def _check(settings: Settings, *, repair: bool, walk: bool, now: bool) -> FsckReport:
    services = build_services(settings)
    try:
        return await services.fsck.run(repair=repair, walk=walk, now=now)
    finally:
        await services.close()


async def _drop_lost(settings: Settings, *, walk: bool, yes: bool, as_json: bool) -> None:
    services = build_services(settings)
    try:
        found = await _losses(services, walk=walk)
        if not as_json:
            _print_losses(found)
        # A script decides by the list, and passes --yes.
        confirmed = yes or (
            bool(found) and not as_json and typer.confirm("Delete all of these permanently?")
        )
        dropped = await _drop(services, found) if confirmed else []
    finally:
        await services.close()
    if as_json:
        lost = [loss.as_document() for loss in found]
        print_json({"lost": lost, "dropped": [loss.cid for loss in dropped]})
    elif found:
        typer.echo(f"{len(dropped)} of {len(found)} lost contents were deleted")
    if len(dropped) < len(found):
        raise typer.Exit(1)


async def _losses(services: Services, *, walk: bool) -> Sequence[LostContent]:
    report = await services.fsck.run(repair=True, walk=walk)
    return await services.fsck.losses(report)


async def _drop(services: Services, found: Sequence[LostContent]) -> Sequence[LostContent]:
    from on_api.core.services.accounts.audit import COMMAND_LINE

    return await services.fsck.drop_lost(found, COMMAND_LINE)


def print_report(report: FsckReport) -> None:
    """Print the findings of a run, and its sums, for people."""
    from on_api.core.services.upkeep.fsck.findings import MEANINGS

    for finding in report.findings:
        typer.echo(f"{_state(finding):6}  {finding.kind}  {finding.subject}: {finding.details}")
    for kind, count in report.counts.items():
        typer.echo(f"{count} x {kind}: {MEANINGS[kind]}")
    waiting = f", {report.deferred} pins left in quarantine" if report.deferred else ""
    typer.echo(
        f"{report.contents} contents, {report.pins} pins on the node, {report.blocks} blocks "
        f"({report.bytes / 10**9:,.3f} GB) read: "
        + ("clean" if report.clean else "NOT clean")
        + waiting
    )


def _state(finding: Finding) -> str:
    if finding.mended:
        return "mended"
    if finding.deferred:
        return "later"
    return "WRONG" if finding.is_trouble else "note"


def _print_losses(found: Sequence[LostContent]) -> None:
    for loss in found:
        typer.echo(f"lost    {loss.cid}: {loss.details}")
        for each in loss.references:
            name = "" if each.name is None else f" {each.name!r}"
            size = "" if each.size is None else f", {each.size} bytes"
            links = f", {each.shares} links" if each.shares else ""
            typer.echo(f"        {each.username}: {each.kind} {each.id}{name}{size}{links}")
    if not found:
        typer.echo("No content is lost")
