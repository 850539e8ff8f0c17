"""SQLite's stand-in for `@>` says what PostgreSQL says, alone and as a condition on a column."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, select, text

from on_api.core.models import Database, Pin, User, UserUsage
from on_api.core.models.json_contains import Contains, contains, json_contains
from on_api.tests.conftest import DatabaseMaker, make_settings

SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0]) | st.text("ab")
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text("ab", max_size=2), DOCUMENTS, max_size=3)


@pytest.fixture(scope="module")
def engine(postgres: str) -> Any:
    """A plain PostgreSQL to compare with."""
    made = create_engine(postgres.replace("postgresql://", "postgresql+psycopg2://"))
    yield made
    made.dispose()


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(document=OBJECTS, wanted=OBJECTS)
def test_as_postgresql(engine: Engine, document: dict[str, Any], wanted: dict[str, Any]) -> None:
    """On any two objects."""
    with engine.connect() as connection:
        expected = connection.scalar(
            text("SELECT CAST(:d AS jsonb) @> CAST(:w AS jsonb)"),
            {"d": json.dumps(document), "w": json.dumps(wanted)},
        )
    assert contains(document, wanted) is expected
    assert json_contains(json.dumps(document), json.dumps(wanted)) is expected


def test_no_document_contains_nothing() -> None:
    """SQL's NULL."""
    assert json_contains(None, "{}") is False


@pytest.fixture(scope="module")
def both(
    sqlite_database: DatabaseMaker,
    postgres_database: DatabaseMaker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[list[Database]]:
    """One of each kind."""
    home = tmp_path_factory.mktemp("contains")
    made = [
        Database(make_settings(home, maker())) for maker in (sqlite_database, postgres_database)
    ]
    yield made
    for database in made:
        database.dispose()


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=4)
PAIRS = st.dictionaries(TEXTS | st.text("a%_'", max_size=2), TEXTS, max_size=4)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.none() | PAIRS, min_size=1, max_size=6), data=st.data())
def test_the_condition_finds_the_same_rows_on_both(
    both: list[Database], rows: list[dict[str, str] | None], data: st.DataObject
) -> None:
    """Any texts as keys and values; rows without meta are never among them."""
    some = data.draw(st.sampled_from(rows)) or {}
    kept = data.draw(st.sets(st.sampled_from(sorted(some)))) if some else set()
    wanted = {key: some[key] for key in kept} | data.draw(st.just({}) | PAIRS)
    expected = [
        n for n, row in enumerate(rows) if row is not None and wanted.items() <= row.items()
    ]
    for database in both:
        with database.session_scope() as session:
            user = User(username=uuid.uuid4().hex, usage=UserUsage())
            session.add(user)
            session.flush()
            for number, meta in enumerate(rows):
                moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
                pin = Pin(user_id=user.id, cid="c", source_cid="c", name=str(number), meta=meta)
                pin.created_at = pin.deadline_at = moment
                session.add(pin)
            session.flush()
            found = session.scalars(
                select(Pin.name)
                .where(Pin.user_id == user.id, Contains(Pin.meta, wanted))
                .order_by(Pin.created_at)
            ).all()
            assert found == [str(number) for number in expected]
