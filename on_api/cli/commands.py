"""The command `on-api`, assembled from its modules.

Each module imports what a command needs inside that command: `on-api --help` must not wait for the
import of all of on-api.
"""

from __future__ import annotations

from importlib.metadata import version as release_of
from typing import Annotated

import typer

from on_api.cli import (
    backup,
    db,
    doctor,
    export,
    fsck,
    gateway,
    gc,
    imports,
    init,
    keys,
    node,
    openapi,
    serve,
    users,
    worker,
)

app = typer.Typer(
    name="on-api",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"on-api {release_of('on-api')}")
        raise typer.Exit


@app.callback()
def _on_api(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version, and end."
        ),
    ] = False,
) -> None:
    """Your own IPFS storage service."""


app.command("serve")(serve.serve)
app.command("worker")(worker.worker)
app.command("gc")(gc.gc)
app.command("fsck")(fsck.fsck)
app.command("export")(export.export)
app.command("backup")(backup.backup)
app.command("verify")(backup.verify)
app.command("restore")(backup.restore)
app.command("init")(init.init)
app.command("openapi")(openapi.openapi)
app.command("doctor")(doctor.doctor)
app.add_typer(db.app, name="db")
app.add_typer(users.app, name="users")
app.add_typer(keys.app, name="keys")
app.add_typer(imports.app, name="imports")
app.add_typer(db.app, name="db")
app.add_typer(node.app, name="node")
app.add_typer(gateway.app, name="gateway")
