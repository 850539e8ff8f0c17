"""Words for validation errors: where and why, never what was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MAX_REPORTED = 5
"""Mistakes named in one answer."""

# Where Pydantic's own words repeat what was sent, or don't tell a person what to do.
_OWN_WORDS = {
    "json_invalid": "not valid JSON",
    "model_attributes_type": "send a JSON object, with Content-Type: application/json",
    "uuid_parsing": "not a UUID",
}


def describe(mistakes: Sequence[Mapping[str, object]]) -> str:
    """Pydantic's mistakes as one sentence: where and why, never what was sent."""
    said = [_sentence(mistake) for mistake in mistakes[:MAX_REPORTED]]
    more = len(mistakes) - MAX_REPORTED
    return "; ".join(said) + (f"; and {more} more" if more > 0 else "") + "."


def _sentence(mistake: Mapping[str, object]) -> str:
    where = mistake.get("loc")
    steps = [str(step) for step in where] if isinstance(where, tuple) else ["body"]
    kind = mistake.get("type")
    if kind == "extra_forbidden":
        # Its name is the client's own word: left out, like every value.
        steps, words = steps[:-1], "a field that is not known here"
    else:
        words = _OWN_WORDS.get(str(kind), str(mistake.get("msg")))
    return ": ".join(part for part in (".".join(steps), words) if part)
