"""Limits on the rate and number of simultaneous requests, for each address and key, in this
process's memory.

They are for requests too frequent to be counted in a database. Each process has limits of its own.
Knows nothing of how answers are made.
"""

from __future__ import annotations

import math
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address, ip_network

from on_api.core.errors import TooManyRequests
from on_api.core.metrics import Metrics
from on_api.core.setting_groups import GatewaySettings

BURST_SECONDS = 5
"""Seconds for which an unused rate is saved up."""
SUBJECTS = 100_000
"""Most subjects remembered; the one not seen for longest is dropped first."""
NETWORK_BITS = 64
"""Bits of an IPv6 address that count: its owner has the whole network."""

LimitHeaders = dict[str, str]


class TokenBuckets:
    """Rate limit for each of many subjects: `rate` requests a second on average, `BURST_SECONDS` of
    it at once. Not thread-safe."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self.burst = max(1, math.ceil(rate * BURST_SECONDS))
        self._clock = clock
        self._buckets: OrderedDict[object, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of subjects remembered."""
        return len(self._buckets)

    def take(self, subject: object) -> tuple[int, float]:
        """Take one token. Returns the tokens left and 0, or -1 and the seconds until there is
        one."""
        now = self._clock()
        tokens, seen = self._buckets.pop(subject, (float(self.burst), now))
        tokens = min(float(self.burst), tokens + (now - seen) * self._rate)
        left, wait = (-1, (1 - tokens) / self._rate) if tokens < 1 else (int(tokens - 1), 0.0)
        self._buckets[subject] = (tokens if left < 0 else tokens - 1, now)
        if len(self._buckets) > SUBJECTS:
            self._buckets.popitem(last=False)
        return left, wait

    def describe(self, left: int, wait: float) -> LimitHeaders:
        """Return the headers of draft-ietf-httpapi-ratelimit-headers-06."""
        seconds = math.ceil(wait) if left < 0 else math.ceil((self.burst - left) / self._rate)
        return {
            "RateLimit-Limit": str(self.burst),
            "RateLimit-Remaining": str(max(0, left)),
            "RateLimit-Reset": str(seconds),
            "RateLimit-Policy": f"{self.burst};w={BURST_SECONDS}",
        }


class RateLimits:
    """Limits from the settings. On the event loop only: nothing here waits."""

    def __init__(
        self,
        settings: GatewaySettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._by_address = (
            TokenBuckets(settings.rate_per_ip, clock) if settings.rate_per_ip else None
        )
        self._by_key = TokenBuckets(settings.rate_per_key, clock) if settings.rate_per_key else None
        self._under_way: Counter[str] = Counter()

    @property
    def under_way(self) -> int:
        """Number of connections counted now."""
        return self._under_way.total()

    def check(self, address: str | None, key_id: uuid.UUID | None = None) -> LimitHeaders:
        """Count one request. Returns headers for its answer, those of the limit that is closer.

        Raises `TooManyRequests`, with the same headers and `Retry-After`.
        """
        closest: tuple[int, LimitHeaders] | None = None
        for name, buckets, subject in (
            ("ip", self._by_address, None if address is None else network_of(address)),
            ("key", self._by_key, key_id),
        ):
            if buckets is None or subject is None:
                continue
            left, wait = buckets.take(subject)
            headers = buckets.describe(left, wait)
            if left < 0:
                self._metrics.rate_limited.labels(name).inc()
                error = TooManyRequests(retry_after=math.ceil(wait))
                error.headers |= headers
                raise error
            if closest is None or left < closest[0]:
                closest = left, headers
        return {} if closest is None else closest[1]

    @contextmanager
    def connection(self, address: str | None) -> Iterator[None]:
        """Count one running answer to an address. Raises `TooManyRequests` when there are too
        many."""
        most = self._settings.connections_per_ip
        if not most or address is None:
            yield
            return
        subject = network_of(address)
        if self._under_way[subject] >= most:
            self._metrics.rate_limited.labels("connections").inc()
            raise TooManyRequests("Too many downloads at once from your address.", retry_after=1)
        self._under_way[subject] += 1
        try:
            yield
        finally:
            self._under_way[subject] -= 1
            if not self._under_way[subject]:
                del self._under_way[subject]


def network_of(address: str) -> str:
    """Return the unit that is limited: an IPv4 address itself, an IPv6 address's network. Any other
    text is returned unchanged."""
    if ":" not in address:
        return address
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ip_network((int(parsed), NETWORK_BITS), strict=False))
