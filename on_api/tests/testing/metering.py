"""Meters without a server: several "processes" on one database, with the test's own clock."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select

from on_api.core.metrics import Metrics
from on_api.core.models import (
    AccelCharge,
    Database,
    EgressCounter,
    EgressCredit,
    Event,
    MeteringProcess,
    Traffic,
    TrafficTotal,
    User,
    UserUsage,
)
from on_api.core.models.invalidation import Invalidations
from on_api.core.models.traffic import INSTANCE, OWNER
from on_api.core.services.traffic.egress import EgressLedger
from on_api.core.services.traffic.metering import Meter, Ticket
from on_api.core.services.traffic.sums import COUNTS
from on_api.core.setting_groups import TrafficSettings
from on_api.tests.testing.deadline import until

NOVEMBER = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)


@dataclass
class Stage:
    """A database, the processes that meter on it, and their clock."""

    database: Database
    news: Invalidations
    now: datetime = NOVEMBER
    meters: list[Meter] = field(default_factory=list)

    def meter(self, **settings: Any) -> Meter:
        """Add the meter of one more process."""
        traffic = TrafficSettings(**settings)
        meter = Meter(
            EgressLedger(self.database, traffic),
            self.news,
            traffic,
            Metrics(),
            lambda: self.now.timestamp(),
        )
        self.meters.append(meter)
        return meter

    def new_user(self, budget: int | None = None) -> uuid.UUID:
        """Add an account, and return its id."""
        with self.database.session_scope() as session:
            user = User(username=f"user-{uuid.uuid4()}", egress_budget=budget)
            user.usage = UserUsage()
            session.add(user)
            session.flush()
            return user.id

    def set_budget(self, user_id: uuid.UUID, budget: int | None) -> None:
        """Set a user's budget, as an administrator does."""
        with self.database.session_scope() as session:
            session.get_one(User, user_id).egress_budget = budget
            self.news.announce(session)

    def counter(self, user_id: uuid.UUID | None, month: str = "2026-11") -> int:
        """Return the bytes spent by a user, or by the whole instance if `user_id` is None."""
        whose = (INSTANCE, uuid.UUID(int=0)) if user_id is None else (OWNER, user_id)
        with self.database.session_scope(write=False) as session:
            row = session.get(EgressCounter, (*whose, month))
            return row.bytes if row is not None else 0

    def open_credit(self) -> int:
        """Return the bytes of credit that owners' accounts have open."""
        with self.database.session_scope(write=False) as session:
            of_owners = EgressCredit.subject_kind == OWNER
            return session.scalar(select(func.sum(EgressCredit.bytes)).where(of_owners)) or 0

    def rows(self) -> list[Traffic]:
        """Return the rows of traffic."""
        with self.database.session_scope(write=False) as session:
            return list(session.scalars(select(Traffic).order_by(Traffic.period)))

    def totals(self, table: type[Traffic] | type[TrafficTotal]) -> list[tuple[object, ...]]:
        """Return a table's sums by kind, which are the same in both tables."""
        sums = [func.sum(getattr(table, name)) for name in COUNTS]
        with self.database.session_scope(write=False) as session:
            rows = session.execute(select(table.kind, *sums).group_by(table.kind))
            return sorted((kind, *map(int, counts)) for kind, *counts in rows)

    def events(self) -> list[Event]:
        """Return all events."""
        with self.database.session_scope(write=False) as session:
            return list(session.scalars(select(Event).order_by(Event.id)))


@contextmanager
def staged(database: Database) -> Iterator[Stage]:
    """Yield a stage with empty tables and working cache invalidation."""
    news = Invalidations(database)
    news.start()
    until(lambda: news.trusted, "news are heard")
    stage = Stage(database, news)
    yield stage
    news.stop()
    assert stage.totals(TrafficTotal) == stage.totals(Traffic)
    with database.session_scope() as session:
        for table in (
            Traffic,
            TrafficTotal,
            EgressCounter,
            EgressCredit,
            MeteringProcess,
            AccelCharge,
            Event,
        ):
            session.query(table).delete()


async def send(ticket: Ticket, *pieces: int) -> None:
    """Count an answer's pieces, as the middleware does."""
    for size in pieces:
        if not ticket.take(size):
            await ticket.more(size)
