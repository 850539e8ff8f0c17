"""`on-api gc`: runs a garbage collection now."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from on_api.cli.context import build_services, command_settings, print_json

if TYPE_CHECKING:
    from on_api.core.services.upkeep.garbage import Collection
    from on_api.core.settings import Settings


def gc(
    patience: Annotated[
        float | None, typer.Option(help="Seconds to wait for uploads in progress.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Run garbage collection on the node, which deletes all blocks that no pin covers. New uploads
    wait until it has finished. Exits with code 1 if it was postponed."""
    settings = command_settings(warns=False)
    done = asyncio.run(_collect(settings, settings.gc.patience if patience is None else patience))
    if as_json:
        print_json(asdict(done))
    elif done.outcome == "postponed":
        typer.echo(
            "Postponed: uploads or fetches in progress did not finish in time. Try again later."
        )
    elif done.outcome == "unsafe":
        typer.echo(
            "Nothing was removed: content that is still in use has lost its pin, and some of"
            " its blocks are missing. Run `on-api fsck` to see which; if the blocks can't be"
            " recovered, run `on-api fsck --drop-lost` to delete the files and pins concerned."
        )
    else:
        typer.echo(
            f"Removed {done.removed_blocks} blocks, {done.freed_bytes / 10**9:,.3f} GB, "
            f"in {done.seconds:.1f} s."
        )
    if done.outcome != "collected":
        raise typer.Exit(1)


async def _collect(settings: Settings, patience: float) -> Collection:

    services = build_services(settings)
    try:
        return await services.garbage.collect(patience)
    finally:
        await services.close()
