"""The queue for SQLite's single writer's place: first come, first served.

SQLite itself lets each writer retry after longer and longer pauses, so that under load some wait
until their timeout while others overtake them. Knows nothing of databases.
"""

from __future__ import annotations

import threading
from collections import deque


class WritersQueue:
    """A lock that is granted in the order of the calls. Any thread may release it for another."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._tickets: deque[threading.Lock] = deque()

    @property
    def waiting(self) -> int:
        """Number of threads that wait for their turn."""
        return len(self._tickets)

    def enter(self, seconds: float) -> bool:
        """Wait for a turn, at most so many seconds. Returns whether it came."""
        with self._guard:
            if not self._taken:
                self._taken = True
                return True
            ticket = threading.Lock()
            ticket.acquire()
            self._tickets.append(ticket)
        if ticket.acquire(timeout=seconds):
            return True
        with self._guard:
            if ticket not in self._tickets:
                return True  # handed over at the last moment
            self._tickets.remove(ticket)
            return False

    def leave(self) -> None:
        """End the turn and hand it to the next thread."""
        with self._guard:
            if self._tickets:
                self._tickets.popleft().release()
            else:
                self._taken = False
