"""Bases and field types that every resource shares."""

from __future__ import annotations

import json
import math
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.json_schema import SkipJsonSchema

META_MAX_BYTES = 16 * 1024
META_MAX_DEPTH = 8


class Answer(BaseModel):
    """Base of what we send: every field is always there."""

    model_config = ConfigDict(from_attributes=True)


class Request(BaseModel):
    """Base of what we receive: a field we don't know is an error, not a silent loss."""

    model_config = ConfigDict(extra="forbid")


def left_out(description: str | None = None) -> Any:
    """Return the default of a field of an update: left out means unchanged
    (`model_dump(exclude_unset=True)`).

    It is not a value that could be sent, so the document shows none.
    """
    return Field(default=None, description=description, json_schema_extra=_hide_default)


def _hide_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _plain_text(value: str) -> str:
    for character in value:
        if unicodedata.category(character) in {"Cc", "Cs"}:
            raise ValueError("control characters and lone surrogates are not allowed")
    return value


def _storable_document(value: dict[str, Any]) -> dict[str, Any]:
    _check(value, META_MAX_DEPTH)
    if len(json.dumps(value, ensure_ascii=False).encode()) > META_MAX_BYTES:
        raise ValueError(f"must not exceed {META_MAX_BYTES} bytes as JSON")
    return value


def _check(value: object, depth: int) -> None:
    if depth < 0:
        raise ValueError(f"must not be nested deeper than {META_MAX_DEPTH} levels")
    if isinstance(value, dict):
        for name, item in value.items():
            _check(name, depth)
            _check(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth - 1)
    elif isinstance(value, str):
        # Text that PostgreSQL's JSONB can't hold is refused on every database.
        storable_text(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must not contain NaN or infinite numbers")


def storable_text(value: str) -> str:
    """Return a text that every database can hold. Raises `ValueError` for NUL and lone
    surrogates."""
    if "\x00" in value or _has_surrogate(value):
        raise ValueError("must not contain NUL characters or lone surrogates")
    return value


def _has_surrogate(value: str) -> bool:
    return not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value)


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be a date and time in the years 1 to 9999 in UTC") from None


def _rfc3339(value: datetime) -> str:
    return value.isoformat(timespec="microseconds").replace("+00:00", "Z")


Text = Annotated[str, AfterValidator(_plain_text)]
"""Text from people: any Unicode except control characters."""

Meta = Annotated[
    dict[str, Any],
    AfterValidator(_storable_document),
    Field(
        description=f"Your own metadata, as a JSON object of at most {META_MAX_BYTES} bytes and"
        f" {META_MAX_DEPTH} levels.",
        examples=[{"project": "atlas"}],
    ),
]

Moment = Annotated[
    datetime,
    PlainSerializer(_rfc3339, when_used="json"),
    Field(examples=["2026-11-23T18:00:00.000000Z"]),
]
"""A moment in an answer: UTC, RFC 3339, `Z`."""

GivenMoment = Annotated[
    AwareDatetime, AfterValidator(_in_utc), Field(examples=["2027-01-01T00:00:00Z"])
]
"""A moment in a request: RFC 3339 with its offset."""

Absent = SkipJsonSchema[None]
"""Type of a query parameter that may be left out: the document doesn't offer null, which no URL can
carry."""

NextCursor = Annotated[
    str | None,
    Field(description="Pass this as `cursor` to get the next page; null on the last page."),
]

ByteCount = Annotated[int, Field(ge=0, le=2**62)]
"""A number of bytes."""
