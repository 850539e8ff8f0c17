"""Database access for one kind of job: threads of its own, each with one transaction at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from sqlalchemy.orm import Session

from on_api.core.models import Database

P = ParamSpec("P")
T = TypeVar("T")


class Transactions:
    """Runs up to `threads` transactions at once, in threads that requests don't share."""

    def __init__(self, database: Database, threads: int) -> None:
        self._database = database
        self._threads = CapacityLimiter(threads)

    async def run(self, work: Callable[[Session], T], *, write: bool = True) -> T:
        """Run `work` in one transaction; see `Database.session_scope` for the errors."""

        def run() -> T:
            with self._database.session_scope(write=write) as session:
                return work(session)

        return await self.in_thread(run)

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work`, which makes its own transactions, in a thread."""
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._threads)
