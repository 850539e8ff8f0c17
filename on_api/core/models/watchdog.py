"""A time limit for every answer of PostgreSQL: psycopg2 waits for ever when a server accepts
statements and does not answer.

`statement_timeout` is enforced by the server and helps only while it lives; `tcp_user_timeout`
helps only when nothing is acknowledged any more. This shuts down the socket under a call that takes
too long, which then fails as a lost connection.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psycopg2.extensions import connection


LOOK_SECONDS = 0.25


class Watchdog:
    """Tracks since when connections wait for an answer; one thread checks them."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: dict[int, float] = {}
        """Deadlines for an answer (`time.monotonic`), by the socket's file descriptor."""
        self._stopping = threading.Event()
        self._needed = threading.Event()
        """Set while the thread is to look; without it, the thread sleeps."""
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watch(self, watched: connection) -> Iterator[None]:
        """Shut down the socket of `watched` if the block takes longer than the limit."""
        descriptor = watched.fileno()
        with self._lock:
            if self._thread is None:
                self._start()
            self._waiting[descriptor] = time.monotonic() + self._limit
            if not self._needed.is_set():
                self._needed.set()
        try:
            yield
        finally:
            # Under the lock: otherwise the descriptor could be closed, and reused for another
            # socket, while it is being shut down.
            with self._lock:
                self._waiting.pop(descriptor, None)

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._needed.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="on-api-watchdog", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            self._needed.wait()
            now = time.monotonic()
            with self._lock:
                if not self._waiting and not self._stopping.is_set():
                    self._needed.clear()
                for descriptor in [d for d, until in self._waiting.items() if until < now]:
                    del self._waiting[descriptor]
                    _cut(descriptor)

    def connection_factory(self) -> type[connection]:
        """Return a psycopg2 connection class whose every call to the server is watched."""
        from psycopg2.extensions import connection, cursor

        watchdog = self

        class WatchedCursor(cursor):
            """Cursor whose statements are watched."""

            def execute(self, query: Any, vars: Any = None) -> None:
                """See psycopg2."""
                with watchdog.watch(self.connection):
                    super().execute(query, vars)

            def executemany(self, query: Any, vars_list: Any) -> None:
                """See psycopg2."""
                with watchdog.watch(self.connection):
                    super().executemany(query, vars_list)

        class WatchedConnection(connection):
            """Connection whose commits and rollbacks are watched."""

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
