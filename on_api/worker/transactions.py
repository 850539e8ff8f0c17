"""The database for a kind of jobs: in threads of its own, a transaction a visit."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from sqlalchemy.orm import Session

from on_api.core.models import Database

P = ParamSpec("P")
T = TypeVar("T")


class Transactions:
    """Up to `threads` at once. Requests wait for the same database, not for the same threads."""

    def __init__(self, database: Database, threads: int) -> None:
        self._database = database
        self._threads = CapacityLimiter(threads)

    async def run(self, work: Callable[[Session], T], *, write: bool = True) -> T:
        """Do this in one transaction; see `Database.session_scope` for what it raises."""

        def run() -> T:
            with self._database.session_scope(write=write) as session:
                return work(session)

        return await self.in_thread(run)

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what makes transactions itself."""
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._threads)
