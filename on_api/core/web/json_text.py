"""JSON as accepted from clients: a repeated name is an error."""

from __future__ import annotations

import json
from typing import Any


class RepeatedName(ValueError):
    """An object has a name twice; most readers would keep the last value."""


def read_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises `ValueError` if it isn't JSON, `RepeatedName` for an
    object with a repeated name (RFC 8259, section 4), and `RecursionError` for too deep nesting."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise RepeatedName("an object contains the same name twice")
    return members
