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
        float | None, typer.Option(help="Seconds to wait for uploads under way.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Free what no pin covers. Uploads wait meanwhile. Exit code 1 when it was put off."""
    settings = command_settings(warns=False)
    done = asyncio.run(_collect(settings, settings.gc.patience if patience is None else patience))
    if as_json:
        print_json(asdict(done))
    elif done.outcome == "postponed":
        typer.echo("Put off: uploads or fetches under way did not end in time. Try again later.")
    elif done.outcome == "unsafe":
        typer.echo(
            "Nothing was removed: content that somebody holds has lost its pin, and blocks of it "
            "are missing. `on-api fsck` says which; where they can be had no more, `on-api fsck "
            "--drop-lost` gives them up."
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
