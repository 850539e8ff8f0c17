"""A connection to PostgreSQL that is waited for no longer than one says: whatever lies between may
have swallowed the question, or the answer."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_WRITE


class PatientConnection:
    """Statements without results, each a transaction of its own, and what `NOTIFY` brings. By one
    thread. Raises psycopg2's errors for a connection that is lost."""

    def __init__(self, dsn: str, seconds: float) -> None:
        """Connect. Raises `TimeoutError` after so many seconds, as `execute` does."""
        self._seconds = seconds
        self._connection = psycopg2.connect(dsn, application_name="on-api", async_=True)
        try:
            self._finish()
            self._cursor = self._connection.cursor()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """For `wait_for_any`."""
        return int(self._connection.fileno())

    def is_idle(self) -> bool:
        """Whether what was begun is done."""
        return bool(self._connection.poll() == POLL_OK)

    def begin(self, statement: str) -> None:
        """Send a statement, and don't wait for its answer."""
        self._cursor.execute(statement)

    def execute(self, statement: str) -> None:
        """Send a statement and wait for its answer."""
        self.begin(statement)
        self._finish()

    def notifies(self) -> Sequence[str]:
        """The payloads that have come since it was last asked."""
        self._connection.poll()
        come = [notify.payload for notify in self._connection.notifies]
        self._connection.notifies.clear()
        return come

    def close(self) -> None:
        """End it."""
        self._connection.close()

    def _finish(self) -> None:
        until = time.monotonic() + self._seconds
        while (state := self._connection.poll()) != POLL_OK:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            _poll([self], select.POLLOUT if state == POLL_WRITE else select.POLLIN, left)


def wait_for_any(connections: Sequence[PatientConnection], seconds: float) -> None:
    """Wait until something has come by one of these, or so many seconds have gone by."""
    _poll(connections, select.POLLIN, seconds)


def _poll(connections: Sequence[PatientConnection], event: int, seconds: float) -> None:
    # Not `select.select`, which refuses descriptors from 1024 on: a server may have thousands.
    poll = select.poll()
    for connection in connections:
        poll.register(connection, event)
    poll.poll(seconds * 1000)
