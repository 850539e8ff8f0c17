"""Words for validation errors: where and why, never what was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MAX_REPORTED = 5
"""Mistakes named in one answer."""


def describe(mistakes: Sequence[Mapping[str, object]]) -> str:
    """Pydantic's mistakes as one sentence: where and why, never what was sent."""
    said = []
    for mistake in mistakes[:MAX_REPORTED]:
        where = mistake.get("loc")
        path = ".".join(str(step) for step in where) if isinstance(where, tuple) else "body"
        if mistake.get("type") == "json_invalid":
            said.append("body: not valid JSON")
        elif mistake.get("type") == "extra_forbidden":
            # Its name is the client's own word: leave it out, like every value.
            said.append(f"{path.rpartition('.')[0]}: a field that is not known here")
        else:
            said.append(f"{path}: {mistake.get('msg')}")
    more = len(mistakes) - MAX_REPORTED
    return "; ".join(said) + (f"; and {more} more" if more > 0 else "") + "."
