"""Exponential back-off: how long to wait between attempts that fail one after the other."""

from __future__ import annotations

import random
from dataclasses import dataclass

_MOST_DOUBLINGS = 60
"""More would be no number of seconds, and no pause is as long."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses in seconds: `first` after the first failure, doubled after each next one, never more
    than `longest`."""

    first: float
    longest: float

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row; 1 is the first."""
        return min(self.longest, self.first * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))

    def jittered(self, failures: int) -> float:
        """Seconds to wait, up to a half less than `pause`: what failed together isn't tried again
        together."""
        return self.pause(failures) * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
