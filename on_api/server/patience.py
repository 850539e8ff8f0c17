"""Limits on how long the server waits for its clients, and for how many: heads that never end,
requests that don't come, answers that the client doesn't read, too many connections.

All connections are checked once a second, so that neither a request nor a piece of data costs a
timer. Knows nothing of HTTP: connections say what they wait for, and are told when it takes too
long.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from typing import ClassVar, Protocol
from weakref import WeakKeyDictionary

from on_api.core.server_settings import ConnectionSettings
from on_api.core.services.shared.rate_limits import network_of

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Seconds between two checks of all connections; less if a limit is shorter than four of them."""

CONNECTIONS_AT_ONCE = 200
PAUSE_SECONDS = 0.01
"""Pause after each `CONNECTIONS_AT_ONCE` connections, so that requests don't wait for all of
them."""


class Watched(Protocol):
    """A connection, as `Patience` sees it."""

    def awaited_head(self) -> int:
        """Return the number of the request whose head has begun and not ended; 0 if no head is
        awaited. A negative number, which changes with each sign of life, if none has begun yet."""

    def head_is_late(self) -> None:
        """Stop waiting for that head: its time is over."""

    def is_busy(self) -> bool:
        """Return whether a request is not answered yet."""


class Sending(Protocol):
    """A connection's transport."""

    written: int
    """Bytes written since the connection began."""

    def undelivered(self, *, is_busy: bool) -> int:
        """Return how many written bytes the client's side hasn't received yet. Bytes in the kernel
        alone count only if an answer `is_busy` being written."""

    def abort(self) -> None:
        """End the connection at once, and drop all that was written."""


class _Seen:
    """State of a connection at the last check, and since when it has lasted."""

    __slots__ = ("delivered", "head", "head_since", "network", "sending", "stuck_since")

    def __init__(self, sending: Sending, network: str | None, now: float) -> None:
        self.sending = sending
        self.network = network
        self.head = 1
        self.head_since = now
        self.delivered = -1
        self.stuck_since = now


class Patience:
    """All connections of one server, on its event loop."""

    _all: ClassVar[WeakKeyDictionary[object, Patience]] = WeakKeyDictionary()

    @classmethod
    def of(
        cls, server: object, limits: ConnectionSettings, loop: asyncio.AbstractEventLoop
    ) -> Patience:
        """Return the instance of a server, which is created with its first connection."""
        found = cls._all.get(server)
        if found is None:
            found = cls._all[server] = cls(limits, loop)
        return found

    def __init__(self, limits: ConnectionSettings, loop: asyncio.AbstractEventLoop) -> None:
        self._limits = limits
        self._loop = loop
        self._present: dict[Watched, _Seen] = {}
        self._by_network: Counter[str] = Counter()
        self._turned_away = 0
        """Connections refused since the last check."""
        shortest = min(limits.head_timeout, limits.idle_timeout, limits.send_timeout)
        self._every = min(LOOK_SECONDS, shortest / 4)
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, connection: Watched, sending: Sending, address: str | None) -> bool:
        """Watch a new connection until `forget`. Return False if there are too many, in all or from
        the network of `address`."""
        limits = self._limits
        network = network_of(address) if address and limits.most_per_address else None
        is_too_many = len(self._present) >= limits.most or (
            network is not None and self._by_network[network] >= limits.most_per_address
        )
        if self._timer is None:
            self._timer = self._loop.call_later(self._every, self._look)
        if is_too_many:
            self._turned_away += 1
            return False
        if network is not None:
            self._by_network[network] += 1
        self._present[connection] = _Seen(sending, network, self._loop.time())
        return True

    def forget(self, connection: Watched) -> None:
        """Stop watching a connection that has ended. Does nothing if it was not admitted."""
        seen = self._present.pop(connection, None)
        if seen is None or seen.network is None:
            return
        self._by_network[seen.network] -= 1
        if not self._by_network[seen.network]:
            del self._by_network[seen.network]

    def _look(self) -> None:
        self._look_on(list(self._present.items()))

    def _look_on(self, left: list[tuple[Watched, _Seen]]) -> None:
        now = self._loop.time()
        for connection, seen in left[-CONNECTIONS_AT_ONCE:]:
            if connection in self._present:
                try:
                    self._look_at(connection, seen, now)
                except Exception:
                    # The other connections must not go unwatched because of this one.
                    logger.exception("closed a connection that could not be checked")
                    self.forget(connection)
                    with suppress(Exception):
                        seen.sending.abort()
        del left[-CONNECTIONS_AT_ONCE:]
        if left:
            self._timer = self._loop.call_later(PAUSE_SECONDS, self._look_on, left)
            return
        if self._turned_away:
            logger.warning(
                "rejected %d connections, because there were too many", self._turned_away
            )
            self._turned_away = 0
        self._timer = self._loop.call_later(self._every, self._look) if self._present else None

    def _look_at(self, connection: Watched, seen: _Seen, now: float) -> None:
        if not self._waits_for_head(connection, seen, now):
            connection.head_is_late()
        if not self._waits_for_reader(connection, seen, now):
            seen.sending.abort()

    def _waits_for_head(self, connection: Watched, seen: _Seen, now: float) -> bool:
        head, limits = connection.awaited_head(), self._limits
        if head != seen.head:
            seen.head, seen.head_since = head, now
        most = limits.head_timeout if head > 0 else limits.idle_timeout
        return not head or now - seen.head_since < most

    def _waits_for_reader(self, connection: Watched, seen: _Seen, now: float) -> bool:
        left = seen.sending.undelivered(is_busy=connection.is_busy())
        delivered = seen.sending.written - left
        if not left or delivered != seen.delivered:
            seen.delivered, seen.stuck_since = delivered, now
        return not left or now - seen.stuck_since < self._limits.send_timeout
