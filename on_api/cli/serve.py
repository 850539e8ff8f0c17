"""`on-api serve`: runs the node (unless an external one is configured) and the API, in one process
tree that ends together."""

from __future__ import annotations

import shlex
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from on_api.cli import admin_keys
from on_api.cli.context import open_database, prepare_home
from on_api.cli.init import prepare_first_start
from on_api.core.errors import StartupError
from on_api.core.settings import Settings
from on_api.server import collector
from on_api.server.process import end_cleanly_on_signal, load_settings

if TYPE_CHECKING:
    from on_api.core.ipfs.daemon.process import ManagedNode


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", min=1, max=65535)] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            help="Number of API processes; more than one requires PostgreSQL.", min=1, max=64
        ),
    ] = None,
) -> None:
    """Serve the API. This also runs and supervises the IPFS node, unless ON_API_IPFS__RPC_URL names
    an external one.

    The first start creates everything that is needed, as `on-api init` does.
    """
    given = {"host": host, "port": port, "processes": processes}
    settings = load_settings()
    settings = settings.model_copy(update={k: v for k, v in given.items() if v is not None})
    if settings.processes > 1 and settings.uses_sqlite:
        raise StartupError(
            f"Serving with {settings.processes} processes requires PostgreSQL: set"
            " ON_API_DATABASE_URL, or ON_API_PROCESSES=1."
        )
    # For the start of the node; uvicorn sets its own handlers later.
    end_cleanly_on_signal()
    typer.echo(f"on-api: {settings.home_message}")
    # Foreseeable failures are found before anything is started.
    prepare_home(settings.home)
    if settings.manages_node:
        from on_api.core.ipfs.daemon.process import check_home

        check_home(settings.home)

    from on_api.server.serving import open_listeners

    listeners = open_listeners(settings, settings.processes)
    key_file = _look_at_database(settings)

    from on_api.core.logging import configure_logging, log_uncaught_errors
    from on_api.core.services.upkeep.instance import published

    configure_logging(settings.log)
    log_uncaught_errors()
    with ExitStack() as stack:
        for listener in listeners:
            stack.callback(listener.close)
        node = None
        if settings.manages_node:
            from on_api.core.ipfs.daemon.process import ManagedNode
            from on_api.core.ipfs.daemon.repo import rpc_auth_for

            node = stack.enter_context(
                ManagedNode(
                    settings.home, settings.node, rpc_auth_for(settings.home / "ipfs"), typer.echo
                )
            )
        stack.enter_context(published(settings, serves=True))
        if settings.processes > 1:
            _serve_by_many(settings, listeners, node, key_file)
        else:
            _serve_alone(settings, listeners[0], node, key_file)


def _serve_alone(
    settings: Settings, listener: socket.socket, node: ManagedNode | None, key_file: Path | None
) -> None:
    from on_api.cli.lanes import chosen_lanes
    from on_api.main import create_app
    from on_api.server.serving import build_server, keep_freed_memory, run_server

    keep_freed_memory()
    app = create_app(settings)
    collector.begin()
    if node is not None:
        node.on_restart = app.state.services.distrust_pins
    server = build_server(*chosen_lanes(settings, app))
    _say_what_to_try(settings, key_file)
    run_server(server, listener)


def _serve_by_many(
    settings: Settings,
    listeners: list[socket.socket],
    node: ManagedNode | None,
    key_file: Path | None,
) -> None:
    from on_api.core.services.upkeep.siblings import prepare_folder
    from on_api.server.crew import Crew

    prepare_folder(settings.home)
    chosen = {
        # Decided once: a folder .on-api that is made later changes nothing for a restarted process.
        "ON_API_HOME": str(settings.home.absolute()),
        "ON_API_HOST": settings.host,
        "ON_API_PORT": str(settings.port),
    }
    crew = Crew(listeners, chosen)
    collector.begin()
    if node is not None:
        node.on_restart = crew.node_restarted
    _say_what_to_try(settings, key_file)
    crew.run()


def _look_at_database(settings: Settings) -> Path | None:
    """Prepare the database if this is the first start, and check it; raise `StartupError` unless it
    can be used. Return the file with its first administrator's key, if the home still has it."""
    from on_api.core.models.revisions import check_revision

    database = open_database(settings)
    try:
        prepare_first_start(settings, database)
        with database.session_scope(write=False) as session:
            check_revision(session.connection())
            return admin_keys.find(settings.home, session)
    finally:
        database.dispose()


def _say_what_to_try(settings: Settings, key_file: Path | None) -> None:
    shown = "YOUR_KEY" if key_file is None else f"$(cat {_shell_path(key_file)})"
    typer.echo(
        f"""
on-api is running at {settings.base_url}   (press Ctrl-C to stop it)

  Try it in the browser:   {settings.base_url}/docs
  Upload a file:           curl -H "Authorization: Bearer {shown}" \\
                                -F "file=Hello;filename=hello.txt" {settings.base_url}/v1/files
  Then view it at:         {settings.base_url}/ipfs/<cid>
"""
    )


def _shell_path(path: Path) -> str:
    try:
        shown = str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        shown = str(path.absolute())
    return shlex.quote(shown)
