"""`on-api serve`: the node (unless one is configured) and the API, in one process tree that ends
together."""

from __future__ import annotations

import ctypes
import errno
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer

from on_api.cli import collector
from on_api.cli.context import (
    end_politely_when_told,
    load_settings,
    open_database,
    prepare_home,
)
from on_api.core.errors import StartupError
from on_api.core.settings import Settings

GRACE_SECONDS = 30
"""How long transfers under way may go on after Ctrl-C."""


def serve(
    host: Annotated[str | None, typer.Option(help="Address to serve on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to serve on.", min=1, max=65535)] = None,
) -> None:
    """Serve the API; runs and watches over the IPFS node unless ON_API_IPFS__RPC_URL names one."""
    given = {"host": host, "port": port}
    settings = load_settings()
    settings = settings.model_copy(update={k: v for k, v in given.items() if v is not None})
    # While the node starts; uvicorn has handlers of its own later.
    end_politely_when_told()
    # What can be known to fail is found before anything is started.
    prepare_home(settings.home)
    if settings.manages_node:
        from on_api.core.ipfs.node import check_home

        check_home(settings.home)
    listener = _bind(settings)
    _check_database(settings)

    import uvicorn

    from on_api.cli.http_protocol import BoundedHttp
    from on_api.core.logging import configure_logging
    from on_api.main import create_app

    configure_logging(settings.log)
    _keep_freed_memory()
    node = None
    with ExitStack() as stack:
        stack.callback(listener.close)
        if settings.manages_node:
            from on_api.core.ipfs.node import ManagedNode
            from on_api.core.ipfs.repo import rpc_auth_for

            node = stack.enter_context(
                ManagedNode(
                    settings.home, settings.node, rpc_auth_for(settings.home / "ipfs"), typer.echo
                )
            )
        app = create_app(settings)
        collector.begin()
        if node is not None:
            node.on_restart = app.state.services.distrust_pins
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=BoundedHttp,
                lifespan="on",
                log_config=None,
                access_log=False,
                # create_app decides whom to believe, by ON_API_TRUSTED_PROXIES.
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        _say_what_to_try(settings)
        # uvicorn has ended everything by then; it raises the signal once more for whoever waits.
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    if not server.started:
        raise StartupError("The API could not start; the log above says why.")


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        # Taken from here on, though answered only when all is up: a second start fails now, not
        # later.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            cure = "set ON_API_HOST to an address of this machine."
        else:
            cure = "stop what uses it, or choose another with ON_API_PORT (make run PORT=…)."
        raise StartupError(
            f"Can't serve on {settings.host} port {settings.port} ({error.strerror}): {cure}"
        ) from None
    listener.set_inheritable(True)
    return listener


def _check_database(settings: Settings) -> None:
    from on_api.core.models.revisions import check_revision

    database = open_database(settings)
    try:
        with database.session_scope(write=False) as session:
            check_revision(session.connection())
    finally:
        database.dispose()


def _keep_freed_memory() -> None:
    """Let glibc keep what streams free and take again, instead of giving it back to the system and
    asking for zeroed pages each time (mallopt(3)); elsewhere nothing."""
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(trim_threshold, 256 * 1024 * 1024)
    mallopt(top_pad, 16 * 1024 * 1024)
    mallopt(mmap_threshold, 64 * 1024 * 1024)


def _say_what_to_try(settings: Settings) -> None:
    key = settings.home / "admin.key"
    shown = f"$(cat {_shell_path(key)})" if key.exists() else "YOUR_KEY"
    typer.echo(
        f"""
on-api is at {settings.base_url}   (Ctrl-C ends it)

  Try it in the browser:   {settings.base_url}/docs
  Upload a file:           curl -H "Authorization: Bearer {shown}" \\
                                -F file=@README.md {settings.base_url}/v1/files
  It is then seen at:      {settings.base_url}/ipfs/<cid>
"""
    )


def _shell_path(path: Path) -> str:
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path.absolute())
