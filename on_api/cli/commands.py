"""The command `on-api`, assembled from its modules.

Each module imports what a command needs inside that command: `on-api --help` must not wait for the
import of all of on-api.
"""

from __future__ import annotations

import typer

from on_api.cli import (
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
    help="Your own IPFS storage service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve.serve)
app.command("worker")(worker.worker)
app.command("gc")(gc.gc)
app.command("fsck")(fsck.fsck)
app.command("export")(export.export)
app.command("init")(init.init)
app.command("openapi")(openapi.openapi)
app.command("doctor")(doctor.doctor)
app.add_typer(users.app, name="users")
app.add_typer(keys.app, name="keys")
app.add_typer(imports.app, name="imports")
app.add_typer(node.app, name="node")
app.add_typer(gateway.app, name="gateway")
