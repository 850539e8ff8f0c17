"""Pages of lists, made from statements."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from sqlalchemy import Select, func, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from on_api.core.models import Base
from on_api.core.pagination import CursorPage, Position, TimePage

Entity = TypeVar("Entity", bound=Base)


@dataclass(frozen=True, slots=True)
class Listing(Generic[Entity]):
    """List that can be shown in pages: its statement, and the columns that order it, newest
    first."""

    statement: Select[Entity]
    created_at: InstrumentedAttribute[datetime]
    id: InstrumentedAttribute[uuid.UUID]
    known_count: int | None = None
    """Number of rows, where a counter knows it."""
    most_counted: int | None = None
    """Limit for counting, where there may be any number of rows."""

    def by_time(self, session: Session, page: TimePage) -> tuple[int, Sequence[Entity]]:
        """Return the number of matching rows (`before` and `after` included), and the newest
        `limit` of them.

        A client that repeats with `before` = the last item's time until `count == len(items)` has
        seen every row.
        """
        statement = self.statement
        if page.before is not None:
            statement = statement.where(self.created_at < page.before)
        if page.after is not None:
            statement = statement.where(self.created_at > page.after)
        count = self.known_count
        if count is None or not page.whole:
            counted = statement.limit(self.most_counted)
            count = session.scalar(select(func.count()).select_from(counted.subquery())) or 0
        return count, self._newest(session, statement, page.limit)

    def by_cursor(
        self, session: Session, page: CursorPage
    ) -> tuple[Sequence[Entity], Position | None]:
        """Return the next `limit` rows, and the position after which there are more, or None."""
        statement = self.statement
        if page.behind is not None:
            position = (page.behind.created_at, page.behind.id)
            statement = statement.where(tuple_(self.created_at, self.id) < position)
        rows = self._newest(session, statement, page.limit + 1)
        if len(rows) <= page.limit:
            return rows, None
        rows = rows[: page.limit]
        last = rows[-1]
        return rows, Position(getattr(last, self.created_at.key), getattr(last, self.id.key))

    def _newest(self, session: Session, statement: Select[Entity], limit: int) -> Sequence[Entity]:
        ordered = statement.order_by(self.created_at.desc(), self.id.desc())
        return session.scalars(ordered.limit(limit)).all()
