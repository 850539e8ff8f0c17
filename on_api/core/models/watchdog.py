"""A time limit for every answer of PostgreSQL: psycopg2 waits for ever when a server takes
questions and says nothing.

`statement_timeout` is the server's own and helps only while it lives; `tcp_user_timeout` helps only
when nothing acknowledges any more. This cuts the socket under a call that takes too long, which
then fails as a lost connection.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from psycopg2.extensions import connection, cursor

LOOK_SECONDS = 0.25


class Watchdog:
    """Knows which connections wait for an answer since when; one thread looks at them."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: dict[int, float] = {}
        """File descriptors of sockets, with the moment until which an answer must have come."""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watch(self, watched: connection) -> Iterator[None]:
        """Cut `watched` when the block takes longer than the limit."""
        descriptor = watched.fileno()
        with self._lock:
            if self._thread is None:
                self._start()
            self._waiting[descriptor] = time.monotonic() + self._limit
        try:
            yield
        finally:
            # Under the lock: the descriptor can't be closed, and mean another socket, while it is
            # being cut.
            with self._lock:
                self._waiting.pop(descriptor, None)

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="on-api-watchdog", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            now = time.monotonic()
            with self._lock:
                for descriptor in [d for d, until in self._waiting.items() if until < now]:
                    del self._waiting[descriptor]
                    _cut(descriptor)

    def connection_factory(self) -> type[connection]:
        """A psycopg2 connection whose every call to the server is watched."""
        watchdog = self

        class WatchedCursor(cursor):
            """Watches statements."""

            def execute(self, query: Any, vars: Any = None) -> None:
                """See psycopg2."""
                with watchdog.watch(self.connection):
                    super().execute(query, vars)

            def executemany(self, query: Any, vars_list: Any) -> None:
                """See psycopg2."""
                with watchdog.watch(self.connection):
                    super().executemany(query, vars_list)

        class WatchedConnection(connection):
            """Watches the ends of transactions."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.cursor_factory = WatchedCursor

            def commit(self) -> None:
                """See psycopg2."""
                with watchdog.watch(self):
                    super().commit()

            def rollback(self) -> None:
                """See psycopg2."""
                with watchdog.watch(self):
                    super().rollback()

        return WatchedConnection


def _cut(descriptor: int) -> None:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
