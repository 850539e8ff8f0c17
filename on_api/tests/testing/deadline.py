"""Waiting for a condition, instead of for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.1
"""First and longest pause between two checks, in seconds: a long wait must not take the processor
from the work that it waits for."""


def until(condition: Callable[[], T | None], what: str, seconds: float = 15) -> T:
    """Poll until the condition is truthy, and return its value; fail, naming `what`, after
    `seconds`."""
    end = time.monotonic() + seconds
    pause = FIRST_PAUSE
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s in vain: {what}")
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, pause * 1.3)
