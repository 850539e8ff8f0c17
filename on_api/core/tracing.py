"""OpenTelemetry traces: a span for each request, and below it one for each statement to the
database and each call to the node.

Off by default (`ON_API_OTEL`): then nothing of OpenTelemetry's SDK is imported, and no request
passes through anything here. Attributes are of bounded length and hold no secret: no path, query,
header, value or error's text.

The current span is in a context variable of our own, since work for several requests runs in
contexts that keep nothing else of a request (`detached`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar
from importlib.metadata import version
from typing import TYPE_CHECKING

from on_api.core.errors import OnApiError, StartupError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

CARRIED = (b"traceparent", b"tracestate")
"""Headers that continue a client's trace."""
CARRIED_LENGTH = 1024
"""Characters of such a header; longer ones are ignored."""
EXPORTER = "OTEL_TRACES_EXPORTER"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"

_current: ContextVar[Span | None] = ContextVar("span", default=None)


class Tracing:
    """Spans of one process. Raises `StartupError` if the extra `otel` is not installed, or the
    environment asks for what it has not."""

    def __init__(self) -> None:
        _check_environment()
        try:
            from opentelemetry import trace
            from opentelemetry.context import Context as Carried
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation import tracecontext
        except ImportError as error:
            msg = "ON_API_OTEL needs OpenTelemetry: pip install 'on-api[otel]', or unset it."
            raise StartupError(msg) from error
        ours = Resource({"service.name": "on-api", "service.version": version("on-api")})
        # What the environment names goes before.
        resource = ours.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer("on_api")
        self._propagator = tracecontext.TraceContextTextMapPropagator()
        self._nothing_carried = Carried()
        self._trace = trace
        self._new_export: Callable[[], SpanProcessor]
        self._new_export = lambda: BatchSpanProcessor(OTLPSpanExporter())

    def export_to(self, processor: SpanProcessor) -> None:
        """Hand ended spans to a processor as well."""
        self._provider.add_span_processor(processor)

    def begin_export(self) -> None:
        """Begin to send spans away, in a thread, as the standard variables `OTEL_…` say."""
        if os.environ.get(EXPORTER) != "none":
            self.export_to(self._new_export())

    def close(self) -> None:
        """Send what is left, for some seconds at most, and stop."""
        self._provider.shutdown()

    @contextmanager
    def request(self, method: str, carried: Mapping[str, str]) -> Iterator[Span]:
        """Make the span of a request while the block runs. `carried`: the headers `CARRIED`."""
        parent = self._propagator.extract(carried, context=self._nothing_carried)
        span = self._tracer.start_span(
            method,
            context=parent,
            kind=self._trace.SpanKind.SERVER,
            record_exception=False,
            attributes={"http.request.method": method},
        )
        # Spans below one that is not sampled would be made for nothing.
        token = _current.set(span if span.is_recording() else None)
        try:
            yield span
        finally:
            _current.reset(token)
            span.end()

    def failed(self, span: Span, kind: str) -> None:
        """Mark a span as failed, with the kind of failure: never its text."""
        span.set_attribute("error.type", kind)
        span.set_status(self._trace.StatusCode.ERROR)

    def begin(self, name: str, attributes: Mapping[str, str]) -> Span | None:
        """Begin the span of a call that the current request makes; the caller ends it. Returns None
        outside of a traced request."""
        parent = _current.get()
        if parent is None:
            return None
        return self._tracer.start_span(
            name,
            context=self._trace.set_span_in_context(parent, self._nothing_carried),
            kind=self._trace.SpanKind.CLIENT,
            attributes=attributes,
            record_exception=False,
        )

    @contextmanager
    def call(self, name: str, attributes: Mapping[str, str]) -> Iterator[None]:
        """Make the span of a call while the block runs."""
        span = self.begin(name, attributes)
        try:
            yield
        except BaseException as error:
            if span is not None:
                self.failed(span, kind_of(error))
            raise
        finally:
            if span is not None:
                span.end()


def kind_of(error: BaseException) -> str:
    """Return the kind of an error as a span names it: its reason, or its type."""
    return error.reason if isinstance(error, OnApiError) else type(error).__name__


def detached() -> Context:
    """Return an empty context for work that several requests share. Its statements and calls belong
    to the trace of the request that begins it."""
    fresh = Context()
    span = _current.get()
    if span is not None:
        fresh.run(_current.set, span)
    return fresh


def _check_environment() -> None:
    for name, known in ((EXPORTER, ("otlp", "none")), (PROTOCOL, ("http/protobuf",))):
        if os.environ.get(name, known[0]) not in known:
            raise StartupError(f"{name}: on-api knows {' and '.join(known)}.")
