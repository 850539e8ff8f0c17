"""Words for validation errors: where and why, never what was sent."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from on_api.core.error_texts import MAX_REPORTED, describe


class Thing(BaseModel):
    """Something to get wrong."""

    model_config = ConfigDict(extra="forbid")
    id: uuid.UUID
    count: int


def words_for(value: Any) -> str:
    """What is said of a wrong value."""
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(Thing).validate_python(value, from_attributes=True)
    return describe(raised.value.errors())


def test_no_value_and_no_unknown_name_is_repeated() -> None:
    """Whatever was wrong with it."""
    words = words_for({"id": "hunter2", "count": "hunter2", "hunter2": "hunter2"})
    assert "hunter2" not in words
    assert words == (
        "id: not a UUID; count: Input should be a valid integer, unable to parse string as an "
        "integer; a field that is not known here."
    )


def test_what_is_no_object_says_what_to_do() -> None:
    """The usual cause is curl -d without a Content-Type."""
    assert words_for("x") == "send a JSON object, with Content-Type: application/json."


def test_a_flood_of_mistakes_is_cut() -> None:
    """The answer's size doesn't grow with the request's."""
    words = words_for({"id": uuid.uuid4(), "count": 1, **{f"x{n}": n for n in range(100)}})
    assert words.count("not known") == MAX_REPORTED
    assert words.endswith("and 95 more.")
