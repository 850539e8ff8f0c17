"""How long the server waits for its clients, and for how many: heads that never end, requests that
don't come, answers that nobody reads, connections beyond a bound.

One look a second at all connections, so that neither a request nor a piece of data costs a timer.
Knows nothing of HTTP: a connection tells what it owes or is owed, and is told that time is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from typing import ClassVar, Protocol
from weakref import WeakKeyDictionary

from on_api.core.services.shared.rate_limits import network_of
from on_api.core.setting_groups import ConnectionSettings

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at all connections; less where a limit is that short."""

LOOKED_AT_ONCE = 200
PAUSE_SECONDS = 0.01
"""After so many, so that requests don't wait for all of them."""


class Watched(Protocol):
    """A connection as it is looked at."""

    def awaited_head(self) -> int:
        """The number of the request whose head the client has still to end; negative, another one
        after each sign of life, while nothing of it has come; 0 while none is waited for."""

    def head_is_late(self) -> None:
        """Wait for that head no longer: its time is over."""

    def is_busy(self) -> bool:
        """Whether a request is not answered yet."""


class Sending(Protocol):
    """A connection's transport."""

    written: int
    """Bytes since the connection began."""

    def undelivered(self, *, is_busy: bool) -> int:
        """How many of them the client's side hasn't taken yet. Unless an answer `is_busy` being
        written, those that the kernel has don't count."""

    def abort(self) -> None:
        """End the connection at once, whatever was written."""


class _Seen:
    """What a connection was last seen doing, and since when."""

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
        """That of a server, which is made with its first connection."""
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
        """Since the last look."""
        shortest = min(limits.head_timeout, limits.idle_timeout, limits.send_timeout)
        self._every = min(LOOK_SECONDS, shortest / 4)
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, connection: Watched, sending: Sending, address: str | None) -> bool:
        """Watch a new connection until it is forgotten; False if there are too many, in all or from
        the network that the address belongs to."""
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
        """It is over. Does nothing for one that was not admitted."""
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
        for connection, seen in left[-LOOKED_AT_ONCE:]:
            if connection in self._present:
                try:
                    self._look_at(connection, seen, now)
                except Exception:
                    # Nobody else's connection may go unwatched for it.
                    logger.exception("a connection that can't be looked at is ended")
                    self.forget(connection)
                    with suppress(Exception):
                        seen.sending.abort()
        del left[-LOOKED_AT_ONCE:]
        if left:
            self._timer = self._loop.call_later(PAUSE_SECONDS, self._look_on, left)
            return
        if self._turned_away:
            logger.warning("turned %d connections away: too many", self._turned_away)
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
