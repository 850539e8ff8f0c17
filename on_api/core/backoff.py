"""Exponential back-off: pauses between attempts that fail one after the other."""

from __future__ import annotations

import random
from dataclasses import dataclass

_MOST_DOUBLINGS = 60
"""Doublings at most: more would overflow a float, and no pause is that long."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses in seconds: `first` after the first failure, doubled after each further one, at most
    `longest`."""

    first: float
    longest: float

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row; 1 is the first."""
        return min(self.longest, self.first * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))

    def jittered(self, failures: int) -> float:
        """Return the seconds to wait, up to a half less than `pause`, so that jobs that failed
        together are not retried together."""
        return self.pause(failures) * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
