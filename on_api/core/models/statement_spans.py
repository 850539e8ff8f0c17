"""Spans of statements, by SQLAlchemy's events: their text, never the values of their parameters."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, ExceptionContext, event

from on_api.core.tracing import Tracing

TEXT_LENGTH = 2000
"""Characters of a statement that a span shows: many rows make one of megabytes."""

_SPANS = "on_api_spans"


def trace_statements(engine: Engine, tracing: Tracing) -> None:
    """Make a span for each statement of a traced request."""
    system = engine.dialect.name

    def before(
        connection: Connection,
        _cursor: object,
        statement: str,
        _parameters: object,
        _context: object,
        _many: bool,
    ) -> None:
        name = statement.lstrip(" (\n").partition(" ")[0].upper()[:16] or "SQL"
        shown = {"db.system.name": system, "db.query.text": statement[:TEXT_LENGTH]}
        connection.info.setdefault(_SPANS, []).append(tracing.begin(name, shown))

    def after(connection: Connection, *_: Any) -> None:
        if spans := connection.info.get(_SPANS):
            span = spans.pop()
            if span is not None:
                span.end()

    def failed(context: ExceptionContext) -> None:
        if context.connection is None or context.cursor is None:
            return  # no statement: a lost connection, say
        if spans := context.connection.info.get(_SPANS):
            span = spans.pop()
            if span is not None:
                tracing.failed(span, type(context.original_exception).__name__)
                span.end()

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    event.listen(engine, "handle_error", failed)
