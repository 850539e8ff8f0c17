"""The growing pause after wrong passwords, kept in the row of what the password is for: the same
over all processes."""

from __future__ import annotations

from datetime import datetime, timedelta

from on_api.core.errors import TooManyRequests
from on_api.core.models import LoginThrottle, Share
from on_api.core.setting_groups import AuthSettings

LONGEST_PAUSE = timedelta(hours=1)


def count_attempt(row: LoginThrottle | Share, settings: AuthSettings, now: datetime) -> None:
    """Count one try as wrong, before it is made; whoever made it forgives it when it was right.

    `row` is locked. Raises `TooManyRequests` during a pause.
    """
    refuse_during_pause(row, now)
    row.failures += 1
    over = row.failures - settings.failures_allowed
    if over >= 0:
        pause = timedelta(seconds=settings.failure_pause * 2 ** min(over, 16))
        row.blocked_until = now + min(pause, LONGEST_PAUSE)


def refuse_during_pause(row: LoginThrottle | Share, now: datetime) -> None:
    """Raise `TooManyRequests` during a pause."""
    if row.blocked_until is not None and row.blocked_until > now:
        seconds = int((row.blocked_until - now).total_seconds()) + 1
        raise TooManyRequests("Too many wrong passwords; try again later.", retry_after=seconds)
