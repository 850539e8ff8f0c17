"""What PostgreSQL's `jsonb @> jsonb` says, for SQLite, which has no such operator."""

from __future__ import annotations

import json
from typing import Any


def json_contains(document: str | None, wanted: str) -> bool:
    """Whether a JSON text contains another one (PostgreSQL manual, section 8.14.3): as an SQL
    function."""
    return document is not None and contains(json.loads(document), json.loads(wanted))


def contains(value: Any, wanted: Any) -> bool:
    """Objects: every wanted key, contained. Arrays: every wanted element, contained in some one.
    Else: equal."""
    if isinstance(wanted, dict):
        return isinstance(value, dict) and all(
            name in value and contains(value[name], item) for name, item in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(value, list) and all(
            any(contains(element, item) for element in value) for item in wanted
        )
    # True and 1 are equal in Python, not in JSON.
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)
