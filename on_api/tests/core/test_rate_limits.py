"""Limits for each address and key: how many, how soon again, and in how much memory."""

from __future__ import annotations

import tracemalloc
import uuid

import pytest

from on_api.core.errors import RateLimited, TooManyRequests
from on_api.core.limit_settings import LimitsSettings
from on_api.core.metrics import Metrics
from on_api.core.services.shared import rate_limits
from on_api.core.services.shared.rate_limits import (
    RateLimits,
    Standing,
    TokenBuckets,
    headers_of,
    network_of,
)
from on_api.core.setting_groups import GatewaySettings
from on_api.tests.testing.structured_fields import read_list

KEY = uuid.UUID(int=1)


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def at_gateway(clock: Clock, **settings: float) -> RateLimits:
    """The gateway's, with these settings."""
    return RateLimits.of_gateway(GatewaySettings.model_validate(settings), Metrics(), clock)


def at_api(clock: Clock, **settings: int) -> RateLimits:
    """The API's, with these settings."""
    return RateLimits.of_api(LimitsSettings.model_validate(settings), Metrics(), clock)


def test_a_burst_and_then_the_rate() -> None:
    """Five seconds' worth at once, then one each half second; others have their own."""
    clock = Clock()
    limited = at_gateway(clock, rate_per_ip=2)
    answers = [limited.count_address("192.0.2.1") for _ in range(10)]
    assert answers[0] == [Standing("address", 10, 5, 9, 1)]
    assert [standing.left for [standing] in answers] == list(reversed(range(10)))
    with pytest.raises(RateLimited) as refused:
        limited.count_address("192.0.2.1")
    assert refused.value.headers["Retry-After"] == "1"
    assert read_list(refused.value.headers["RateLimit"]) == {"address": {"r": 0, "t": 1}}
    assert read_list(refused.value.headers["RateLimit-Policy"]) == {"address": {"q": 10, "w": 5}}
    limited.count_address("192.0.2.2")
    clock.now += 0.5
    limited.count_address("192.0.2.1")
    with pytest.raises(RateLimited):
        limited.count_address("192.0.2.1")
    clock.now += 1000
    [standing] = limited.count_address("192.0.2.1")
    assert standing.left == 9


@pytest.mark.parametrize("rate", [1, 7, 59, 60, 61, 100, 6007])
@pytest.mark.parametrize("seconds", [1, 7, 60, 600])
def test_no_window_lets_more_through_than_is_told(rate: int, seconds: int) -> None:
    """At once what the policy tells, and then its rate: not one more, for a client that always
    asks. The time until the next one is the one that is told."""
    clock = Clock()
    limited = at_api(clock, requests_per_key=rate, burst_seconds=seconds)
    [first] = limited.count_key(KEY)
    assert first.quota == max(1, -(-rate * seconds // 60))
    assert (first.window - 1) * rate < first.quota * 60 <= first.window * rate
    taken = 1 + sum(bool(limited.count_key(KEY)) for _ in range(first.left))
    assert taken == first.quota
    for _ in range(20):
        with pytest.raises(RateLimited) as refused:
            limited.count_key(KEY)
        wait = int(refused.value.headers["Retry-After"])
        assert wait == read_list(refused.value.headers["RateLimit"])["key"]["t"]
        clock.now += wait
        allowed = 0
        while allowed < first.quota:
            try:
                limited.count_key(KEY)
            except RateLimited:
                break
            allowed += 1
        taken += allowed
        assert allowed >= 1
        assert taken <= first.quota + (clock.now - 1000) * rate / 60 + 1e-6


def test_a_slow_rate_says_when() -> None:
    """One in ten seconds: refusals cost nothing."""
    clock = Clock()
    limited = at_gateway(clock, rate_per_key=0.1)
    limited.count_key(KEY)
    for _ in range(100):
        with pytest.raises(RateLimited) as refused:
            limited.count_key(KEY)
    assert refused.value.headers["Retry-After"] == "10"
    assert limited.count_address("192.0.2.1") == []
    clock.now += 10
    limited.count_key(KEY)


def test_a_hundred_a_minute_are_told_as_a_hundred_in_a_minute() -> None:
    """Of both limits, as lists of structured fields."""
    limited = at_api(Clock(), requests_per_key=100, requests_per_address=600)
    standings = limited.count_address("192.0.2.1") + limited.count_key(KEY)
    headers = headers_of(standings)
    assert headers["RateLimit-Policy"] == '"address";q=600;w=60, "key";q=100;w=60'
    assert headers["RateLimit"] == '"address";r=599;t=1, "key";r=99;t=1'
    assert set(read_list(headers["RateLimit"])) == {"address", "key"}


def test_without_settings_nothing_is_limited() -> None:
    """The default."""
    for limited in (at_gateway(Clock()), at_api(Clock())):
        assert not limited.are_on
        for _ in range(1000):
            assert limited.count_address("192.0.2.1") + limited.count_key(KEY) == []
            with limited.connection("192.0.2.1"):
                pass
    assert headers_of([]) == {}


def test_connections_are_counted_until_their_end() -> None:
    """However they end."""
    limited = at_gateway(Clock(), connections_per_ip=2)
    with limited.connection("2001:db8::1"), limited.connection("2001:db8::2"):
        with pytest.raises(TooManyRequests), limited.connection("2001:db8::3"):
            pass
        with limited.connection("2001:db8:0:1::1"):
            pass
    with pytest.raises(ZeroDivisionError), limited.connection("2001:db8::1"):
        raise ZeroDivisionError
    assert limited.under_way == 0


def test_who_was_not_seen_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others stay refused."""
    monkeypatch.setattr(rate_limits, "SUBJECTS", 10)
    buckets = TokenBuckets(0.1, 5, Clock())
    for number in range(100):
        assert buckets.take("always")[0] <= 0
        buckets.take(number)
    assert len(buckets) == 10
    assert buckets.take("always")[0] == -1


def test_memory_is_bounded() -> None:
    """A hundred thousand addresses are remembered, in tens of megabytes; more take no more. What a
    proxy passes on as an address may be any text."""
    buckets = TokenBuckets(0.1, 5, Clock())
    tracemalloc.start()
    try:
        for number in range(100_000):
            buckets.take(network_of(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"))
        full, _ = tracemalloc.get_traced_memory()
        for number in range(20_000):
            buckets.take(network_of(f"192.168.{number >> 8 & 255}.{number & 255}"))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(buckets) == 100_000
    assert full < 50_000_000
    assert after < full * 1.05
    limited = at_api(Clock(), requests_per_address=1)
    limited.count_address("x" * 60_000)
    with pytest.raises(RateLimited):
        limited.count_address("x" * 60_001)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no:address", "no:address"),
        ("testclient", "testclient"),
    ],
)
def test_whose_address(address: str, network: str) -> None:
    """An IPv6 network is one client."""
    assert network_of(address) == network
