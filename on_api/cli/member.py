"""One of several serving processes, as `crew.py` starts it: `python -m on_api.cli.member NUMBER
LISTENER LINE`, where the latter two are inherited descriptors."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from on_api.cli.lanes import chosen_lanes
from on_api.core.errors import OnApiError
from on_api.core.logging import configure_logging, log_uncaught_errors, tell_failure
from on_api.server import collector
from on_api.server.crew import NODE_RESTARTED, UP
from on_api.server.process import end_cleanly_on_signal, load_settings
from on_api.server.serving import build_server, keep_freed_memory, run_server

if TYPE_CHECKING:
    from on_api.main import Application


def main(number: int, listener: socket.socket, line: socket.socket) -> None:
    """Serve until a signal ends it, or the starting process is gone."""
    from on_api.core.services.upkeep.siblings import Sibling
    from on_api.main import create_app

    for inherited in (listener, line):
        inherited.set_inheritable(False)
    settings = load_settings()
    configure_logging(settings.log)
    log_uncaught_errors()
    keep_freed_memory()
    app = create_app(settings, sibling=Sibling(number, settings.home))
    collector.begin()
    app.state.is_up = lambda: line.send(UP)
    threading.Thread(target=_hear, args=(line, app), name="on-api-line", daemon=True).start()
    run_server(build_server(*chosen_lanes(settings, app)), listener)


def _hear(line: socket.socket, app: Application) -> None:
    received = b"."
    while received:
        try:
            received = line.recv(64)
        except ConnectionError:
            received = b""
        if NODE_RESTARTED in received:
            app.state.services.distrust_pins()
    # The line has ended: stop as if told to; harmless if that is why it ended.
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    # Until everything is built, as in cli/main.py.
    gc.disable()
    end_cleanly_on_signal()
    number, listening, leading = map(int, sys.argv[1:])
    try:
        with suppress(KeyboardInterrupt):
            main(number, socket.socket(fileno=listening), socket.socket(fileno=leading))
    except OnApiError as error:
        tell_failure(error.details)
        sys.exit(1)
