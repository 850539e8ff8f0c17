"""The queue before SQLite's single writer's place: first come, first served.

SQLite itself lets everybody try again and again after longer and longer pauses, so that under load
some wait until their time is over while others pass. Knows nothing of databases.
"""

from __future__ import annotations

import threading
from collections import deque


class WritersQueue:
    """A lock that is handed over in the order of asking. Any thread may leave for another."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._tickets: deque[threading.Lock] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for their turn at this moment."""
        return len(self._tickets)

    def enter(self, seconds: float) -> bool:
        """Wait for one's turn, at most so long; whether it came."""
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
        """End one's turn: it is the next one's."""
        with self._guard:
            if self._tickets:
                self._tickets.popleft().release()
            else:
                self._taken = False
