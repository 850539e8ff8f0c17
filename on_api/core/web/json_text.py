"""JSON as it is taken from clients: what says the same thing twice is an error, not a choice."""

from __future__ import annotations

import json
from typing import Any


class RepeatedName(ValueError):
    """An object has a name twice, of which most readers would keep the last value."""


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises `ValueError` for what is none, `RepeatedName` for an object
    with a name twice (RFC 8259, section 4), and `RecursionError` for what is nested too deeply."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise RepeatedName("a name comes twice in one object")
    return members
