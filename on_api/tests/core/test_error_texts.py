"""Words for validation errors: where and why, never what was sent."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import pytest
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic.json_schema import SkipJsonSchema

from on_api.core.schemas.common import Meta
from on_api.core.web.error_texts import MAX_REPORTED_MISTAKES, describe


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
        "integer; unknown field."
    )


def test_what_is_no_object_says_what_to_do() -> None:
    """The usual cause is curl -d without a Content-Type."""
    assert words_for("x") == "must be a JSON object, sent with Content-Type: application/json."


Code = Annotated[str, AfterValidator(lambda text: text.strip()), Field(max_length=3)]


class Query(BaseModel):
    """Parameters that may be left out."""

    at: AwareDatetime | SkipJsonSchema[None] = None
    code: Code | SkipJsonSchema[None] = None
    number: int | None = None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            {"at": "yesterday"},
            "at: must be a date and time with a UTC offset, e.g. 2027-01-01T00:00:00Z",
        ),
        ({"at": "2027-01-01T00:00:00"}, "at: must be a date and time with a UTC offset"),
        ({"code": "long"}, "code: must have at most 3 characters."),
        ({"code": 3}, "code: Input should be a valid string."),
        ({"number": "x"}, "number: Input should be a valid integer"),
    ],
)
def test_what_may_be_left_out_is_not_said_to_be_none(wrong: dict[str, object], words: str) -> None:
    """Nor is anything said of the branches of a union."""
    with pytest.raises(ValidationError) as raised:
        Query.model_validate(wrong)
    said = describe(raised.value.errors())
    assert said.startswith(words)
    assert "None" not in said


def test_our_own_checks_speak_for_themselves() -> None:
    """Without Pydantic's prefix."""
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(Meta).validate_python({"a": "\x00"})
    assert describe(raised.value.errors()) == (
        "must not contain NUL characters or lone surrogates."
    )


def test_a_flood_of_mistakes_is_cut() -> None:
    """The answer's size doesn't grow with the request's."""
    words = words_for({"id": uuid.uuid4(), "count": 1, **{f"x{n}": n for n in range(100)}})
    assert words.count("unknown field") == MAX_REPORTED_MISTAKES
    assert words.endswith("and 95 more.")
