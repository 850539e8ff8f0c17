"""`on-api imports`: moves content over from elsewhere, started on the machine that on-api runs on.

The worker (`on-api serve`, or `on-api worker`) does the work; only a CAR is read here and streamed
to the node, since other processes may not be able to read this user's files.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from on_api.cli.context import (
    build_services,
    command_scope,
    command_settings,
    open_database,
    print_json,
    print_table,
)
from on_api.cli.progress import Progress, ProgressLine

if TYPE_CHECKING:
    from on_api.core.models import Database, Import
    from on_api.core.providers.base import SourceSpec
    from on_api.core.settings import Settings

app = typer.Typer(help="Move content over from elsewhere.", no_args_is_help=True)

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 15.0
"""Seconds after which a message says that no worker has begun."""
UNENDED = {"draft", "running"}

AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]
Username = Annotated[str, typer.Option("--user", help="Whose import it is.")]
ImportId = Annotated[uuid.UUID, typer.Argument(help="The import's id.")]


@app.command("start")
def start(
    source: Annotated[
        str,
        typer.Argument(
            help="pinning_api, pinata, kubo, car, cids or on_api; or the id of an import, to start "
            "it, go on after a pause, or try again what failed."
        ),
    ],
    place: Annotated[
        str | None,
        typer.Argument(help="The service's URL; of `car` and `cids` the file."),
    ] = None,
    user: Username = "admin",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="ON_API_SOURCE_TOKEN",
            help="The source's token: asked for when not given. Never put it on a command line "
            "that others can see.",
        ),
    ] = None,
    login: Annotated[
        str | None,
        typer.Option(help="Of on_api: the username there, so that private files come too."),
    ] = None,
    password: Annotated[
        str | None, typer.Option(envvar="ON_API_SOURCE_PASSWORD", help="With --login.")
    ] = None,
    route: Annotated[str, typer.Option(help="auto, ipfs or gateway.")] = "auto",
    gateway: Annotated[str | None, typer.Option(help="A trustless gateway's URL.")] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Read the list and say what there is; move nothing.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the id and don't wait for the end.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Begin an import and show how far it is, until its end. Ctrl-C leaves it running.

    Exit code 1 when something was not moved, or is here and can't be opened.
    """
    known = _as_id(source)
    if known is not None:
        with command_scope() as (services, session):
            row = services.imports.start(session, _owner(session, known), known)
            import_id = row.id
    else:
        spec = _spec(source, place, token, login, password)
        settings = command_settings(warns=False)
        if source == "car":
            asyncio.run(_require_node(settings))
        import_id = _create(user, spec, route, gateway, start=not preview)
        if source == "car":
            asyncio.run(_send_car(settings, import_id, Path(place or "")))
    if detach:
        print_json({"id": str(import_id)}) if as_json else typer.echo(str(import_id))
        return
    _follow(import_id, until_listed=preview, as_json=as_json)


@app.command("status")
def status(
    import_id: ImportId,
    follow: Annotated[bool, typer.Option("--follow", help="Until its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Progress of an import."""
    if follow:
        _follow(import_id, until_listed=False, as_json=as_json)
        return
    database = open_database(command_settings())
    shown = _shown(database, import_id)
    database.dispose()
    print_json(shown) if as_json else _print(shown)


@app.command("report")
def report(
    import_id: ImportId,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV instead of JSON.")] = False,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Into this file; else printed.")
    ] = None,
) -> None:
    """Every item of an import, and whether everything was moved and verified.

    Without --csv, --json or --output: the last line alone. Exit code 1 when something is missing,
    or is here and can't be opened.
    """
    from on_api.core.services.transfer.reports import REPORTS, summary_of

    database = open_database(command_settings())
    try:
        with database.session_scope(write=False) as session:
            owner = _owner(session, import_id)
        pieces = REPORTS["csv" if as_csv else "json"][1](database, owner, import_id)
        if output is not None:
            with output.open("w", encoding="utf-8", newline="") as file:
                file.writelines(pieces)
        elif as_csv or as_json:
            for piece in pieces:
                typer.echo(piece, nl=False)
        summary = summary_of(database, owner, import_id)
    finally:
        database.dispose()
    if not (as_csv or as_json or output):
        typer.echo(summary.words)
    if not summary.complete:
        raise typer.Exit(1)


@app.command("list")
def list_(user: Username = "admin", as_json: AsJson = False) -> None:
    """A user's imports, newest first."""
    from on_api.core.pagination import MAX_LIMIT, TimePage
    from on_api.core.services.accounts.users import find_user
    from on_api.core.services.transfer.imports import imports_of

    with command_scope() as (_, session):
        listing = imports_of(find_user(session, user).id)
        _, rows = listing.by_time(session, TimePage(limit=MAX_LIMIT))
        table: list[tuple[object, ...]] = [
            (r.id, r.kind, r.status, r.total, r.done, r.failed, r.moved_bytes, r.created_at)
            for r in rows
        ]
    header = ("id", "source", "status", "total", "done", "failed", "bytes", "created")
    if as_json:
        print_json([dict(zip(header, row, strict=True)) for row in table])
    else:
        print_table(header, table)


@app.command("pause")
def pause(import_id: ImportId) -> None:
    """Stop for now; `start ID` goes on."""
    with command_scope() as (services, session):
        services.imports.pause(session, _owner(session, import_id), import_id)
    typer.echo("paused")


@app.command("cancel")
def cancel(import_id: ImportId) -> None:
    """End an import. What was moved stays."""
    with command_scope() as (services, session):
        services.imports.cancel(session, _owner(session, import_id), import_id)
    typer.echo("cancelled")


def _as_id(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def _owner(session: Any, import_id: uuid.UUID) -> uuid.UUID:
    from on_api.core.services.transfer.imports import find_any_import

    return find_any_import(session, import_id).user_id


def _spec(
    kind: str, place: str | None, token: str | None, login: str | None, password: str | None
) -> SourceSpec:
    """Build a source from the command line; missing secrets are prompted for."""
    from on_api.core.errors import BadRequest
    from on_api.core.providers.base import CAR, CIDS, FIELDS, SourceSpec

    if kind in {CAR, CIDS}:
        if place is None or not Path(place).is_file():
            raise BadRequest(f"{kind}: name a file.")
        if kind == CAR:
            return SourceSpec(CAR)
        try:
            return SourceSpec(CIDS, text=Path(place).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise BadRequest(f"{place} can't be read as text: {error}.") from None
    if token is None and FIELDS.get(kind, {}).get("token"):
        token = typer.prompt("Token of the source", hide_input=True)
    if login is not None and password is None:
        password = typer.prompt(f"Password of {login} at the source", hide_input=True)
    return SourceSpec(kind, endpoint=place, token=token, username=login, password=password)


def _create(
    username: str, spec: SourceSpec, route: str, gateway: str | None, *, start: bool
) -> uuid.UUID:
    from on_api.core.errors import BadRequest
    from on_api.core.services.accounts.users import find_user
    from on_api.core.services.transfer.imports import AUTO, GATEWAY, IPFS, ImportRequest

    if route not in {AUTO, IPFS, GATEWAY}:
        raise BadRequest("--route: auto, ipfs or gateway.")
    with command_scope() as (services, session):
        user = find_user(session, username)
        request = ImportRequest(spec, route, gateway, start=start and spec.kind != "car")
        row = services.imports.create(session, user.id, request, is_admin=user.is_admin)
        return row.id


async def _require_node(settings: Settings) -> None:
    """Raise a `NodeError` unless the node that a file would go to can be reached and is this
    deployment's: before anything is recorded."""
    services = build_services(settings)
    try:
        await services.node.peer_id()
    finally:
        await services.close()


async def _send_car(settings: Settings, import_id: uuid.UUID, path: Path) -> None:
    """Stream a CAR file to the node."""
    from on_api.core.providers.car import chunks_of
    from on_api.core.services.content.leases import JobHolder
    from on_api.core.services.content.reservations import Announced

    services = build_services(settings)
    try:
        with services.database.session_scope(write=False) as session:
            owner = _owner(session, import_id)
        size = path.stat().st_size
        await services.cars.take(
            JobHolder(owner),
            import_id,
            chunks_of(path),
            Announced(size, size),
            name=path.stem[:255],
        )
    finally:
        await services.close()


def _follow(import_id: uuid.UUID, *, until_listed: bool, as_json: bool) -> None:
    """Show an import's progress until it has ended, or until its source's list was read."""
    from on_api.core.services.transfer.reports import summary_of

    database = open_database(command_settings())
    line = ProgressLine()
    begun_at, announced = time.monotonic(), False
    try:
        while True:
            shown = _shown(database, import_id)
            is_listed = shown["preview"]["complete"]
            is_over = shown["status"] not in UNENDED or (until_listed and is_listed)
            line.show(_progress(shown), last=is_over)
            if is_over or (shown["status"] == "draft" and is_listed):
                break
            late = time.monotonic() - begun_at > PATIENCE_SECONDS
            if late and not announced and not shown["total"] and not is_listed:
                announced = True
                line.end()
                typer.echo("nobody has begun yet: is `on-api serve` running?", err=True)
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        line.end()
        typer.echo(f"it goes on; `on-api imports status --follow {import_id}` shows it", err=True)
        raise typer.Exit(130) from None
    finally:
        line.end()
    with database.session_scope(write=False) as session:
        owner = _owner(session, import_id)
    summary = summary_of(database, owner, import_id)
    database.dispose()
    if as_json:
        print_json({**shown, "complete": summary.complete, "verdict": summary.words})
    elif until_listed and shown["status"] == "draft":
        _print(shown)
    else:
        typer.echo(f"import {import_id}: {shown['status']}")
        typer.echo(summary.words)
    is_preview = until_listed and shown["status"] in UNENDED
    if shown["failed"] or not (is_preview or summary.complete):
        raise typer.Exit(1)


def _shown(database: Database, import_id: uuid.UUID) -> dict[str, Any]:
    from on_api.core.schemas.imports import Import as Shown
    from on_api.core.services.transfer.imports import find_any_import, standing_of

    with database.session_scope(write=False) as session:
        row: Import = find_any_import(session, import_id)
        return Shown.of(row, standing_of(session, row)).model_dump(mode="json")


def _progress(shown: dict[str, Any]) -> Progress:
    preview = shown["preview"]
    if not preview["complete"]:
        return Progress("reading the list", shown["total"], 0, preview["known_bytes"], None)
    needed = preview["known_bytes"] - preview["already_here_bytes"]
    return Progress(
        {"running": "moving"}.get(shown["status"], shown["status"]),
        shown["done"] + shown["failed"],
        shown["total"],
        shown["bytes"] + shown["bytes_under_way"],
        None if preview["unknown_sizes"] else needed,
    )


def _print(shown: dict[str, Any]) -> None:
    preview = shown["preview"]
    fits = {True: "yes", False: "NO", None: "can't be told yet"}[preview["fits"]]
    left = preview["quota_left"]
    for name, value in (
        ("import", shown["id"]),
        ("source", " ".join(shown["source"].values())),
        ("status", shown["status"] + (f" ({shown['error']})" if shown["error"] else "")),
        ("items", f"{preview['items']}" + ("" if preview["complete"] else " so far")),
        ("bytes", f"{preview['known_bytes']}, {preview['unknown_sizes']} items of unknown size"),
        ("already here", f"{preview['already_here']} items"),
        ("quota", "no limit" if left is None else f"{left} bytes left; enough: {fits}"),
        ("moved", f"{shown['done']} items, {shown['bytes']} bytes; {shown['failed']} failed"),
    ):
        typer.echo(f"{name:13} {value}")
