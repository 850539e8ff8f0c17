"""Waiting for a condition instead of for luck."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.1
"""Seconds between two looks, the first and the most: who waits long mustn't take the processor from
what is waited for."""


def until(condition: Callable[[], T | None], what: str, seconds: float = 15) -> T:
    """Poll until the condition is truthy and return it; fail naming `what` after the deadline."""
    end = time.monotonic() + seconds
    pause = FIRST_PAUSE
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s in vain: {what}")
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, pause * 1.3)
