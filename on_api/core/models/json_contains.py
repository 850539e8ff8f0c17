"""Containment of JSON documents: PostgreSQL's `jsonb @> jsonb`, and an equivalent for SQLite, which
has no such operator."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Boolean, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class Contains(FunctionElement[bool]):
    """SQL condition: a JSON column contains a document."""

    name = "json_contains"
    type = Boolean()
    inherit_cache = True

    def __init__(self, column: InstrumentedAttribute[Any], wanted: dict[str, Any]) -> None:
        super().__init__(column, literal(json.dumps(wanted)))


@compiles(Contains)
def _as_function(element: Contains, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_contains({compiler.process(element.clauses, **options)})"


@compiles(Contains, "postgresql")
def _as_operator(element: Contains, compiler: SQLCompiler, **options: Any) -> str:
    column, wanted = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({column} @> CAST({wanted} AS JSONB))"


def json_contains(document: str | None, wanted: str) -> bool:
    """Return whether a JSON text contains another one (PostgreSQL manual, section 8.14.3). Used as
    an SQL function."""
    return document is not None and contains(json.loads(document), json.loads(wanted))


def contains(value: Any, wanted: Any) -> bool:
    """Return whether `value` contains `wanted`. Objects: every wanted key, its value contained.
    Arrays: every wanted element contained in some element. Otherwise: equal."""
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
