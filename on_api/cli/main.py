"""`on-api`: where the command line begins and ends. The one place that prints the commands' errors.

Imports make some 300,000 objects that live as long as the process. Python's collector of cyclic
garbage would go through them again and again while they come, and twice more at the end: that was a
third of a short command's time. So it rests from before the first of our imports, which is why they
stand below it, until a command that lasts says `collector.begin`.
"""

from __future__ import annotations

import gc
import sys


def run() -> None:
    """Run a command; what goes wrong is one sentence on standard error and exit code 1."""
    gc.disable()
    try:
        _run()
    finally:
        # What is left is given back whole when the process ends; nobody needs to look through it.
        gc.freeze()


def _run() -> None:
    from on_api.cli.commands import app
    from on_api.core.errors import OnApiError

    try:
        app()
    except OnApiError as error:
        sys.stderr.write(f"on-api: {error.details}\n")
        sys.exit(1)
