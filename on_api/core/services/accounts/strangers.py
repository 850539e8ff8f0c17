"""Threads for the database work of strangers: keys to look up, links, the gateway's checks.

Any client can cause such work, as often as it likes. In threads of its own it delays only itself;
the threads for requests with a valid key stay free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

P = ParamSpec("P")
T = TypeVar("T")

SHARE_DIVISOR = 4
"""Divisor: one of so many of `ON_API_THREADS` threads is for strangers."""


class Strangers:
    """Limiter for strangers' work: one of `SHARE_DIVISOR` parts of `threads` at once; further work
    waits in turn."""

    def __init__(self, threads: int) -> None:
        self._threads = CapacityLimiter(max(1, threads // SHARE_DIVISOR))

    @property
    def waiting(self) -> int:
        """Pieces of work that wait for a thread."""
        return self._threads.statistics().tasks_waiting

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in one of the threads. Raises what it raises."""
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._threads)
