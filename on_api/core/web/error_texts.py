"""Texts for validation errors: where and why, never the value that was sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

MAX_REPORTED_MISTAKES = 5
"""Number of mistakes named in one answer."""

_MOMENT = (
    "must be a date and time with a UTC offset, e.g. 2027-01-01T00:00:00Z (in a URL, write + as"
    " %2B)"
)

# Used where Pydantic's own text repeats the value, or doesn't help a person.
_OWN_WORDS = {
    "json_invalid": "not valid JSON",
    "model_attributes_type": "must be a JSON object, sent with Content-Type: application/json",
    "dict_type": "must be a JSON object",
    "uuid_parsing": "not a UUID",
    "datetime_type": _MOMENT,
    "datetime_parsing": _MOMENT,
    "datetime_from_date_parsing": _MOMENT,
    "timezone_aware": _MOMENT,
}

Step = str | int


def describe(mistakes: Sequence[Mapping[str, object]]) -> str:
    """Return Pydantic's mistakes as one sentence: where and why, never the value that was sent."""
    found = list(_without_branches(mistakes))
    sentences = [_sentence(steps, mistake) for steps, mistake in found[:MAX_REPORTED_MISTAKES]]
    more = len(found) - MAX_REPORTED_MISTAKES
    return "; ".join(sentences) + (f"; and {more} more" if more > 0 else "") + "."


def _without_branches(
    mistakes: Sequence[Mapping[str, object]],
) -> Iterator[tuple[tuple[Step, ...], Mapping[str, object]]]:
    """Yield each mistake and its location. For an optional value Pydantic also reports that it is
    not None, and adds the union's branch to the location: both are left out, as they mean nothing
    to the client."""
    optional = [_location(m)[:-1] for m in mistakes if m.get("type") == "none_required"]
    for mistake in mistakes:
        steps = _location(mistake)
        branch = next(
            (len(location) for location in optional if steps[: len(location)] == location), None
        )
        if mistake.get("type") != "none_required":
            yield steps if branch is None else steps[:branch] + steps[branch + 1 :], mistake


def _location(mistake: Mapping[str, object]) -> tuple[Step, ...]:
    where = mistake.get("loc")
    return where if isinstance(where, tuple) else ("body",)


def _sentence(steps: tuple[Step, ...], mistake: Mapping[str, object]) -> str:
    if mistake.get("type") == "extra_forbidden":
        # The field's name comes from the client: left out, like every value.
        steps, words = steps[:-1], "unknown field"
    else:
        words = _words(mistake)
    return ": ".join(part for part in (".".join(map(str, steps)), words) if part)


def _words(mistake: Mapping[str, object]) -> str:
    kind, context = str(mistake.get("type")), mistake.get("ctx")
    if isinstance(context, dict) and context.get("field_type") == "Value":
        # Pydantic says "Value" for a text whose length is checked after other checks.
        least, most = context.get("min_length"), context.get("max_length")
        if kind == "too_short":
            return f"must have at least {least} character{'' if least == 1 else 's'}"
        if kind == "too_long":
            return f"must have at most {most} characters"
    return _OWN_WORDS.get(kind, str(mistake.get("msg")).removeprefix("Value error, "))
