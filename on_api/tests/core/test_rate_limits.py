"""Limits for each address and key: how many, how soon again, and in how much memory."""

from __future__ import annotations

import uuid

import pytest

from on_api.core.errors import TooManyRequests
from on_api.core.metrics import Metrics
from on_api.core.services.shared import rate_limits
from on_api.core.services.shared.rate_limits import RateLimits, TokenBuckets, network_of
from on_api.core.setting_groups import GatewaySettings


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limits(clock: Clock, **settings: float) -> RateLimits:
    """With these settings."""
    return RateLimits(GatewaySettings.model_validate(settings), Metrics(), clock)


def test_a_burst_and_then_the_rate() -> None:
    """Five seconds' worth at once, then one each half second; others have their own."""
    clock = Clock()
    limited = limits(clock, rate_per_ip=2)
    answers = [limited.check("192.0.2.1") for _ in range(10)]
    assert [answer["RateLimit-Remaining"] for answer in answers] == [
        str(left) for left in reversed(range(10))
    ]
    assert answers[0]["RateLimit-Limit"] == "10"
    with pytest.raises(TooManyRequests) as refused:
        limited.check("192.0.2.1")
    assert refused.value.headers["Retry-After"] == "1"
    assert refused.value.headers["RateLimit-Remaining"] == "0"
    limited.check("192.0.2.2")
    clock.now += 0.5
    limited.check("192.0.2.1")
    with pytest.raises(TooManyRequests):
        limited.check("192.0.2.1")
    clock.now += 1000
    assert limited.check("192.0.2.1")["RateLimit-Remaining"] == "9"


def test_a_slow_rate_says_when() -> None:
    """One in ten seconds: refusals cost nothing."""
    clock = Clock()
    limited = limits(clock, rate_per_key=0.1)
    key = uuid.uuid4()
    limited.check("192.0.2.1", key)
    for _ in range(100):
        with pytest.raises(TooManyRequests) as refused:
            limited.check("192.0.2.1", key)
    assert refused.value.headers["Retry-After"] == "10"
    assert limited.check("192.0.2.1") == {}
    clock.now += 10
    limited.check("192.0.2.1", key)


def test_without_settings_nothing_is_limited() -> None:
    """The default."""
    limited = limits(Clock())
    for _ in range(1000):
        assert limited.check("192.0.2.1", uuid.UUID(int=1)) == {}
        with limited.connection("192.0.2.1"):
            pass


def test_connections_are_counted_until_their_end() -> None:
    """However they end."""
    limited = limits(Clock(), connections_per_ip=2)
    with limited.connection("2001:db8::1"), limited.connection("2001:db8::2"):
        with pytest.raises(TooManyRequests), limited.connection("2001:db8::3"):
            pass
        with limited.connection("2001:db8:0:1::1"):
            pass
    with pytest.raises(ZeroDivisionError), limited.connection("2001:db8::1"):
        raise ZeroDivisionError
    assert limited.under_way == 0


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was not seen for longest is forgotten."""
    monkeypatch.setattr(rate_limits, "SUBJECTS", 10)
    buckets = TokenBuckets(0.1, Clock())
    for number in range(100):
        assert buckets.take("always")[0] <= 0
        buckets.take(number)
    assert len(buckets) == 10
    assert buckets.take("always")[0] == -1


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
