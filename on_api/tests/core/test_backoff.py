"""Pauses double, and end somewhere."""

from __future__ import annotations

from on_api.core.backoff import Backoff


def test_pauses_double_up_to_the_longest() -> None:
    """From the first failure on, however many there are."""
    backoff = Backoff(first=0.5, longest=30.0)
    assert [backoff.pause(failures) for failures in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.pause(10**9) == 30.0


def test_no_pause_at_all() -> None:
    """A pause of nothing stays nothing, and a longest pause of nothing is kept to."""
    assert Backoff(first=0.5, longest=0.0).pause(3) == 0.0
    assert Backoff(first=0.0, longest=30.0).pause(10**9) == 0.0


def test_jitter_shortens_by_up_to_a_half() -> None:
    """Never longer than told, and not all alike."""
    backoff = Backoff(first=1.0, longest=4.0)
    pauses = [backoff.jittered(3) for _ in range(200)]
    assert 2.0 <= min(pauses) < max(pauses) <= 4.0
