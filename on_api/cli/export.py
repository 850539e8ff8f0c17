"""`on-api export`: writes all of a user's content, to be taken elsewhere."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from on_api.cli.context import build_services, command_settings
from on_api.cli.progress import size

if TYPE_CHECKING:
    from on_api.core.settings import Settings

_FORMATS = ("car", "pins", "json")


def export(
    user: Annotated[str, typer.Option("--user", help="User whose content is exported.")] = "admin",
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="Format: `car` (the content itself), `pins` (CSV of CIDs and names, which `imports"
            " start cids` reads) or `json` (files, pins and links).",
        ),
    ] = "car",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write to; by default, the export is printed."),
    ] = None,
) -> None:
    """Export everything that a user stores, as a CAR, a list of CIDs, or JSON.

    Exits with code 1 if the export is incomplete; no file is created in that case.
    """
    from on_api.core.errors import BadRequest

    if format_ not in _FORMATS:
        raise BadRequest(f"--format must be one of {', '.join(_FORMATS)}.")
    if output is None and format_ == "car" and sys.stdout.isatty():
        raise BadRequest(
            "A CAR is binary and can't be printed to a terminal: name a file with --output."
        )
    settings = command_settings(warns=False)
    if output is None:
        asyncio.run(_write(settings, user, format_, lambda data: sys.stdout.buffer.write(data)))
        sys.stdout.buffer.flush()
        return
    part = output.with_name(output.name + ".part")
    try:
        with part.open("wb") as file:
            written = asyncio.run(_write(settings, user, format_, file.write))
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    typer.echo(f"Wrote {output}, {size(written)}", err=True)


async def _write(
    settings: Settings, username: str, format_: str, write: Callable[[bytes], object]
) -> int:
    """Write the export, and return its size in bytes."""
    from on_api.core.services.accounts import audit
    from on_api.core.services.accounts.users import find_user
    from on_api.core.services.transfer.exports import metadata, open_car, pins_list

    services = build_services(settings)
    written = 0
    try:
        with services.database.session_scope() as session:
            user_id = find_user(session, username).id
            audit.record(session, audit.COMMAND_LINE, "export", "user", user_id, format=format_)
        if format_ == "car":
            car = await open_car(services.database, services.node, user_id)
            async for chunk in car.chunks():
                write(chunk)
                written += len(chunk)
        else:
            pieces = pins_list if format_ == "pins" else metadata
            for piece in pieces(services.database, user_id):
                write(piece.encode())
                written += len(piece.encode())
    finally:
        await services.close()
    return written
