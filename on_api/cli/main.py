"""Entry point of the command line, and the one place that prints the commands' errors.

Imports make some 300,000 objects that live as long as the process. Python's collector of cyclic
garbage would go through them again and again during the imports, and twice more at the end: a third
of a short command's time. So it is disabled before the first import of on-api, which is why the
imports stand below, until a long-running command calls `collector.begin`.
"""

from __future__ import annotations

import gc
import sys


def run() -> None:
    """Run a command; an error becomes one sentence on standard error and exit code 1."""
    gc.disable()
    try:
        _run()
    finally:
        # All memory is returned when the process ends: no last collection is needed.
        gc.freeze()


def _run() -> None:
    from on_api.cli.commands import app
    from on_api.core.errors import OnApiError
    from on_api.core.logging import tell_failure

    try:
        app()
    except OnApiError as error:
        tell_failure(error.details)
        sys.exit(1)
