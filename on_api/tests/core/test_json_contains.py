"""SQLite's stand-in for `@>` says what PostgreSQL says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, text

from on_api.core.models.json_contains import contains, json_contains

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
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
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
