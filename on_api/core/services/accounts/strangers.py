"""Threads for the database work of those who aren't known yet: keys that must be looked up, links,
what the gateway may serve.

Anybody may ask for such work, as often as they like. In threads of its own it waits for itself, and
those that requests with a valid key need stay free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

P = ParamSpec("P")
T = TypeVar("T")

SHARE = 4
"""One thread for so many of `ON_API_THREADS`."""


class Strangers:
    """Up to a `SHARE`th of `threads` at once; the others wait in turn."""

    def __init__(self, threads: int) -> None:
        self._threads = CapacityLimiter(max(1, threads // SHARE))

    @property
    def waiting(self) -> int:
        """Pieces of work that wait for a thread."""
        return self._threads.statistics().tasks_waiting

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do this in one of the threads. Raises what it raises."""
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._threads)
