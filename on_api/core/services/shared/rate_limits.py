"""Limits on the rate and number of simultaneous requests, for each address and key, in this
process's memory. The API and the gateway have one `RateLimits` each.

They are for requests too frequent to be counted in a database. Each process has limits of its own.
Knows nothing of how answers are made.
"""

from __future__ import annotations

import math
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address, ip_network
from typing import NamedTuple, Self

from on_api.core.errors import RateLimited, TooManyRequests
from on_api.core.limit_settings import LimitsSettings
from on_api.core.metrics import Metrics
from on_api.core.setting_groups import GatewaySettings

BURST_SECONDS = 5
"""Seconds for which an unused rate is saved up at the gateway."""
SUBJECTS = 100_000
"""Most subjects remembered; the one not seen for longest is dropped first."""
NETWORK_BITS = 64
"""Bits of an IPv6 address that count: its owner has the whole network."""
ADDRESS_LENGTH = 64
"""Characters of an address that count: a proxy that is believed may pass on any text."""

LimitHeaders = dict[str, str]


class TokenBuckets:
    """Rate limit for each of many subjects: `rate` requests a second on average, `saved_seconds` of
    it at once. Not thread-safe."""

    def __init__(
        self, rate: float, saved_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        # Rounded first: 60 seconds of 100 a minute are 100, whatever the floats say.
        self.burst = max(1, math.ceil(round(rate * saved_seconds, 6)))
        self.full_seconds = self.seconds_for(self.burst)
        """Seconds in which an empty bucket is full again."""
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

    def seconds_for(self, tokens: int) -> int:
        """Return the whole seconds in which so many tokens come."""
        return math.ceil(round(tokens / self._rate, 6))


class Standing(NamedTuple):
    """State of a client under one limit: `quota` requests within `window` seconds are allowed,
    `left` of them are left, and all of them again in `seconds` (after a refusal: one)."""

    limit: str
    quota: int
    window: int
    left: int
    seconds: int


def headers_of(standings: Iterable[Standing]) -> LimitHeaders:
    """Return the headers of draft-ietf-httpapi-ratelimit-headers (10 and later), which are lists of
    structured fields (RFC 9651); none without a limit."""
    policies, states = [], []
    for limit, quota, window, left, seconds in standings:
        policies.append(f'"{limit}";q={quota};w={window}')
        states.append(f'"{limit}";r={left};t={seconds}')
    if not policies:
        return {}
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)}


class RateLimits:
    """Limits of the API or of the gateway. On the event loop only: nothing here waits."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        by_address: TokenBuckets | None,
        by_key: TokenBuckets | None,
        most_connections: int = 0,
        labels: tuple[str, str],
    ) -> None:
        """Create the limits; None, or 0, is none. `labels` are those of refusals by address and by
        key in the metrics."""
        self._metrics = metrics
        self._by_address = by_address
        self._by_key = by_key
        self._most_connections = most_connections
        self._labels = labels
        self._under_way: Counter[str] = Counter()

    @classmethod
    def of_gateway(
        cls,
        settings: GatewaySettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Return the gateway's limits; its settings are requests a second."""
        return cls(
            metrics,
            by_address=_buckets(settings.rate_per_ip, BURST_SECONDS, clock),
            by_key=_buckets(settings.rate_per_key, BURST_SECONDS, clock),
            most_connections=settings.connections_per_ip,
            labels=("ip", "key"),
        )

    @classmethod
    def of_api(
        cls,
        settings: LimitsSettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Return the API's limits; its settings are requests a minute."""
        seconds = settings.burst_seconds
        return cls(
            metrics,
            by_address=_buckets(settings.requests_per_address / 60, seconds, clock),
            by_key=_buckets(settings.requests_per_key / 60, seconds, clock),
            labels=("api_ip", "api_key"),
        )

    @property
    def under_way(self) -> int:
        """Number of connections counted now."""
        return self._under_way.total()

    @property
    def are_on(self) -> bool:
        """True if requests of an address or a key are limited."""
        return self._by_address is not None or self._by_key is not None

    def count_address(self, address: str | None) -> list[Standing]:
        """Count a request from an address. Returns its standing with the limit, if there is one;
        raises `RateLimited`, whose headers tell it."""
        if self._by_address is None or address is None:
            return []
        subject = network_of(address)[:ADDRESS_LENGTH]
        return [self._count("address", self._labels[0], self._by_address, subject)]

    def count_key(self, key_id: uuid.UUID) -> list[Standing]:
        """Count a request with a key, as `count_address` does. Raises `RateLimited`."""
        if self._by_key is None:
            return []
        return [self._count("key", self._labels[1], self._by_key, key_id)]

    def _count(self, limit: str, label: str, buckets: TokenBuckets, subject: object) -> Standing:
        left, wait = buckets.take(subject)
        window = buckets.full_seconds
        if left < 0:
            self._metrics.rate_limited.labels(label).inc()
            seconds = math.ceil(wait)
            source = "with this key" if limit == "key" else "from your address"
            error = RateLimited(
                f"Too many requests {source}: the next one is taken in {seconds} s.",
                retry_after=seconds,
            )
            error.headers |= headers_of([Standing(limit, buckets.burst, window, 0, seconds)])
            raise error
        return Standing(
            limit, buckets.burst, window, left, buckets.seconds_for(buckets.burst - left)
        )

    @contextmanager
    def connection(self, address: str | None) -> Iterator[None]:
        """Count one running answer to an address. Raises `TooManyRequests` when there are too
        many."""
        most = self._most_connections
        if not most or address is None:
            yield
            return
        subject = network_of(address)
        if self._under_way[subject] >= most:
            self._metrics.rate_limited.labels("connections").inc()
            raise TooManyRequests(
                "Too many simultaneous downloads from your IP address.", retry_after=1
            )
        self._under_way[subject] += 1
        try:
            yield
        finally:
            self._under_way[subject] -= 1
            if not self._under_way[subject]:
                del self._under_way[subject]


def _buckets(rate: float, saved_seconds: float, clock: Callable[[], float]) -> TokenBuckets | None:
    """Return buckets for a rate in requests a second; None for 0, which is no limit."""
    return TokenBuckets(rate, saved_seconds, clock) if rate else None


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
