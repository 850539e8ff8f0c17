"""A connection to PostgreSQL with a time limit on every answer, since the network may lose a
statement or its answer."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_WRITE


class PatientConnection:
    """A connection for statements without results, each a transaction of its own, and for payloads
    of `NOTIFY`. Used by one thread. Raises psycopg2's errors if the connection is lost."""

    def __init__(self, dsn: str, seconds: float) -> None:
        """Connect. Raises `TimeoutError` after `seconds`, as `execute` does."""
        self._seconds = seconds
        self._connection = psycopg2.connect(dsn, application_name="on-api", async_=True)
        try:
            self._finish()
            self._cursor = self._connection.cursor()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return the socket's descriptor, for `wait_for_any`."""
        return int(self._connection.fileno())

    def is_idle(self) -> bool:
        """Return whether the statement that was begun is done."""
        return bool(self._connection.poll() == POLL_OK)

    def begin(self, statement: str) -> None:
        """Send a statement without waiting for its answer."""
        self._cursor.execute(statement)

    def execute(self, statement: str) -> None:
        """Send a statement and wait for its answer."""
        self.begin(statement)
        self._finish()

    def notifies(self) -> Sequence[str]:
        """Return the payloads that have arrived since the last call."""
        self._connection.poll()
        come = [notify.payload for notify in self._connection.notifies]
        self._connection.notifies.clear()
        return come

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _finish(self) -> None:
        until = time.monotonic() + self._seconds
        while (state := self._connection.poll()) != POLL_OK:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            _poll([self], select.POLLOUT if state == POLL_WRITE else select.POLLIN, left)


def wait_for_any(connections: Sequence[PatientConnection], seconds: float) -> None:
    """Wait until data arrives on one of these, at most so many seconds."""
    _poll(connections, select.POLLIN, seconds)


def _poll(connections: Sequence[PatientConnection], event: int, seconds: float) -> None:
    # Not `select.select`, which refuses descriptors from 1024 on: a server may have thousands.
    poll = select.poll()
    for connection in connections:
        poll.register(connection, event)
    poll.poll(seconds * 1000)
