"""What keeps the start of a command short, and must not outlast it."""

from __future__ import annotations

import subprocess
import sys

from on_api.tests.testing.processes import Home

SCRIPT = """
import gc, sys
from on_api.cli.main import run
sys.argv = ["on-api", "users", "list"]
try:
    run()
except SystemExit as end:
    print(end.code, gc.isenabled(), *{"aiohttp", "alembic", "fastapi", "httpx"} & set(sys.modules))
from on_api.cli.context import build_services
from on_api.server.process import load_settings
services = build_services(load_settings())
services.hashers.shutdown()
print(gc.isenabled())
"""


def test_a_short_command_imports_little_and_a_long_one_collects_garbage(home: Home) -> None:
    """Neither what serves, nor what calls others, nor what migrates; and the collector rests until
    all is built, no longer."""
    home.init()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=home.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-2:] == ["0 False", "True"]


SERVED = """
import sys
import on_api.cli.serve, on_api.fast.application, on_api.main, on_api.worker.runner
print(*{"cryptography", "dns", "httpcore", "httpx", "pygments", "rich", "trio"} & set(sys.modules))
"""


def test_a_server_imports_no_client_before_it_calls_anybody() -> None:
    """httpx brings along what it finds installed; most servers never call another server. Together
    it was a tenth of an idle process's memory."""
    done = subprocess.run(
        [sys.executable, "-c", SERVED], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []
