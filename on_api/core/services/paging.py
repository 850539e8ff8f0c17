"""How a statement becomes one page of a list."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from on_api.core.models import Base
from on_api.core.pagination import TimePage

Entity = TypeVar("Entity", bound=Base)


def page_by_time(
    session: Session,
    statement: Select[Entity],
    created_at: InstrumentedAttribute[datetime],
    row_id: InstrumentedAttribute[uuid.UUID],
    page: TimePage,
) -> tuple[int, Sequence[Entity]]:
    """How many rows match (`before` and `after` included), and the newest `limit` of them, newest
    first.

    A client that repeats with `before` = the last item's time until `count == len(items)` has seen
    every row.
    """
    statement = within(statement, created_at, page)
    count = session.scalar(select(func.count()).select_from(statement.subquery())) or 0
    return count, newest_first(session, statement, created_at, row_id, page.limit)


def within(
    statement: Select[Entity], created_at: InstrumentedAttribute[datetime], page: TimePage
) -> Select[Entity]:
    """Narrow a statement to the page's times."""
    if page.before is not None:
        statement = statement.where(created_at < page.before)
    if page.after is not None:
        statement = statement.where(created_at > page.after)
    return statement


def newest_first(
    session: Session,
    statement: Select[Entity],
    created_at: InstrumentedAttribute[datetime],
    row_id: InstrumentedAttribute[uuid.UUID],
    limit: int,
) -> Sequence[Entity]:
    """The newest `limit` rows."""
    return session.scalars(statement.order_by(created_at.desc(), row_id.desc()).limit(limit)).all()
