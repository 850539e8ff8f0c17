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

app = typer.Typer(help="Import content from other services.", no_args_is_help=True)

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 15.0
"""Seconds after which a message says that no worker has begun."""
UNENDED = {"draft", "running"}

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Username = Annotated[str, typer.Option("--user", help="User who owns the import.")]
ImportId = Annotated[uuid.UUID, typer.Argument(help="ID of the import.")]


@app.command("start")
def start(
    source: Annotated[
        str,
        typer.Argument(
            help="Source: pinning_api, pinata, kubo, car, cids or on_api; or the ID of an existing"
            " import, to start or resume it, or to retry its failed items."
        ),
    ],
    place: Annotated[
        str | None,
        typer.Argument(help="URL of the service; for `car` and `cids`, the path of the file."),
    ] = None,
    user: Username = "admin",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="ON_API_SOURCE_TOKEN",
            help="Access token for the source; you are prompted for it if it is needed and not"
            " given. Avoid passing it on the command line, where other users can see it.",
        ),
    ] = None,
    login: Annotated[
        str | None,
        typer.Option(
            help="For on_api: your username there, so that private files are imported too."
        ),
    ] = None,
    password: Annotated[
        str | None, typer.Option(envvar="ON_API_SOURCE_PASSWORD", help="Password for --login.")
    ] = None,
    route: Annotated[
        str, typer.Option(help="How to fetch the content: auto, ipfs or gateway.")
    ] = "auto",
    gateway: Annotated[str | None, typer.Option(help="URL of a trustless gateway.")] = None,
    preview: Annotated[
        bool,
        typer.Option(
            "--preview", help="Only read the source's list and show a summary; import nothing."
        ),
    ] = False,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            help="Print the import's ID and exit without waiting for the import to finish.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start an import and show its progress until it finishes. Ctrl-C leaves it running.

    Exits with code 1 if an item could not be imported, or can't be decrypted here.
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
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the progress until the import finishes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the progress of an import."""
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
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV instead of JSON.")] = False,
    as_json: AsJson = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write to; by default, the report is printed."),
    ] = None,
) -> None:
    """Report every item of an import, and whether everything was imported and verified.

    Without --csv, --json or --output, only the summary is printed. Exits with code 1 if an item is
    missing, or can't be decrypted here.
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
    """List a user's imports, newest first."""
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
    """Pause an import; `start ID` resumes it."""
    with command_scope() as (services, session):
        services.imports.pause(session, _owner(session, import_id), import_id)
    typer.echo("paused")


@app.command("cancel")
def cancel(import_id: ImportId) -> None:
    """Cancel an import. Items that were already imported are kept."""
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
            raise BadRequest(f"A {kind} source requires the path of a file.")
        if kind == CAR:
            return SourceSpec(CAR)
        try:
            return SourceSpec(CIDS, text=Path(place).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise BadRequest(f"Can't read {place} as text: {error}.") from None
    if token is None and FIELDS.get(kind, {}).get("token"):
        token = typer.prompt("Access token for the source", hide_input=True)
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
        raise BadRequest("--route must be auto, ipfs or gateway.")
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
                typer.echo("The import has not started yet: is `on-api serve` running?", err=True)
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        line.end()
        typer.echo(
            f"The import continues; `on-api imports status --follow {import_id}` shows its"
            " progress",
            err=True,
        )
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
        return Progress(
            "reading the list of items", shown["total"], 0, preview["known_bytes"], None
        )
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
    fits = {True: "yes", False: "NO", None: "unknown so far"}[preview["fits"]]
    left = preview["quota_left"]
    for name, value in (
        ("import", shown["id"]),
        ("source", " ".join(shown["source"].values())),
        ("status", shown["status"] + (f" ({shown['error']})" if shown["error"] else "")),
        ("items", f"{preview['items']}" + ("" if preview["complete"] else " so far")),
        ("bytes", f"{preview['known_bytes']}, {preview['unknown_sizes']} items of unknown size"),
        ("already here", f"{preview['already_here']} items"),
        ("quota", "no limit" if left is None else f"{left} bytes left; sufficient: {fits}"),
        ("moved", f"{shown['done']} items, {shown['bytes']} bytes; {shown['failed']} failed"),
    ):
        typer.echo(f"{name:13} {value}")
