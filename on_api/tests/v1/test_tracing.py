"""Traces of requests: connected, of bounded detail, without a secret; and nothing at all when they
are off."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
from pydantic import SecretStr

from on_api.core.errors import StartupError
from on_api.core.models.revisions import PROJECT
from on_api.core.setting_groups import IpfsSettings
from on_api.core.settings import Settings
from on_api.core.tracing import Tracing
from on_api.tests.conftest import DatabaseMaker, Server, free_port
from on_api.tests.testing.deadline import until

MakeSettings = Callable[..., Settings]
KIB = 1024
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Traced:
    """A server whose spans are kept."""

    def __init__(self, settings: Settings) -> None:
        self.server = Server(settings)
        self._spans = InMemorySpanExporter()
        tracing = self.server.services.tracing
        assert tracing is not None
        tracing.export_to(SimpleSpanProcessor(self._spans))

    def forget(self) -> None:
        """Forget the spans so far."""
        self._spans.clear()

    def trace(self, name: str) -> tuple[ReadableSpan, list[ReadableSpan]]:
        """Return the one request's span of this name, and all others; it is the last to end."""
        until(lambda: name in {span.name for span in self.all()}, f"the span {name}")
        [request] = [span for span in self.all() if span.name == name]
        return request, [span for span in self.all() if span is not request]

    def all(self) -> tuple[ReadableSpan, ...]:
        """All ended spans."""
        return tuple(self._spans.get_finished_spans())


@pytest.fixture
def traced(
    new_database: DatabaseMaker, settings_for: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Traced]:
    """A running server with traces, on each kind of database."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    traced = Traced(settings_for(new_database(), otel=True))
    with traced.server:
        yield traced


def parent_of(span: ReadableSpan) -> str:
    """The id of the span above."""
    assert span.parent is not None
    return format_span_id(span.parent.span_id)


def identity(span: ReadableSpan) -> str:
    """A span's own id."""
    context = span.get_span_context()
    assert context is not None
    return format_span_id(context.span_id)


def trace_of(span: ReadableSpan) -> str:
    """The id of a span's trace."""
    context = span.get_span_context()
    assert context is not None
    return format_trace_id(context.trace_id)


def said(spans: tuple[ReadableSpan, ...]) -> str:
    """All that spans tell, but for their ids."""
    told = [(span.name, span.attributes, span.events, span.status.description) for span in spans]
    return repr([(name, dict(attributes or {}), *more) for name, attributes, *more in told])


@pytest.mark.parametrize("size", [100, 600 * KIB], ids=["bundled", "large"])
def test_the_spans_of_an_upload_are_connected(traced: Traced, size: int) -> None:
    """In the client's trace: the request below the client's span, and below it the statements and
    the call to the node; none of them tells a secret."""
    account = traced.server.new_user()
    traced.forget()
    with account.client as client:
        answer = client.put(
            "/v1/files",
            params={"name": "a secret name"},
            content=os.urandom(size),
            headers=TRACEPARENT,
        )
        assert answer.status_code == 201
    request, others = traced.trace("PUT /v1/files")
    assert (trace_of(request), parent_of(request)) == (TRACE, PARENT)
    assert request.kind is SpanKind.SERVER
    assert request.attributes == {
        "http.request.method": "PUT",
        "http.route": "/v1/files",
        "http.response.status_code": 201,
        "on_api.request_id": answer.headers["x-request-id"],
    }
    below = [span for span in others if parent_of(span) == identity(request)]
    assert below == others, "spans of nobody"
    assert {trace_of(span) for span in others} == {TRACE}
    assert {span.kind for span in others} == {SpanKind.CLIENT}
    names = [span.name for span in others]
    assert "ipfs add" in names or "ipfs store_bundle" in names
    statements = [str((span.attributes or {}).get("db.query.text", "")) for span in others]
    assert any("INSERT INTO files" in text for text in statements)
    assert any("leases" in text for text in statements)
    assert max(map(len, statements)) <= 2000
    told = said(traced.all())
    for secret in (account.key, "a secret name", account.username, answer.json()["cid"]):
        assert secret not in told


def test_a_link_is_a_secret(traced: Traced) -> None:
    """Neither its path nor what is asked of it is in any span."""
    account = traced.server.new_user()
    with account.client as client, traced.server.client() as anybody:
        file = account.upload(b"shared", "a name")
        link = client.post("/v1/shares", json={"file_id": file["id"]}).json()["url"]
        token = link.rpartition("/")[2]
        traced.forget()
        assert anybody.get(f"/s/{token}", params={"download": "1"}).status_code == 200
        request, others = traced.trace("GET /s/{token:path}")
        assert request.status.status_code is StatusCode.UNSET
        assert others
        assert token not in said(traced.all())
        assert "download" not in said((request,))


def test_the_gateway(traced: Traced) -> None:
    """It has no routes; the node's answer is a span below its own, also for small ones that a
    fast lane would give."""
    account = traced.server.new_user()
    with account.client, traced.server.client() as anybody:
        cid = account.upload(b"public", "a name")["cid"]
        traced.forget()
        assert anybody.get(f"/ipfs/{cid}", params={"filename": "x"}).status_code == 200
        request, others = traced.trace("GET /ipfs")
        assert "ipfs gateway" in {span.name for span in others}
        assert {parent_of(span) for span in others} == {identity(request)}
        assert str(cid) not in said((request,))
        assert "filename" not in said(traced.all())


def test_what_fails(
    sqlite_database: DatabaseMaker, settings_for: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request and the call are marked, by the kind of failure only; what is refused is no
    failure."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    nowhere = f"http://127.0.0.1:{free_port()}"
    gone = IpfsSettings(rpc_url=nowhere, gateway_url=nowhere, rpc_auth=SecretStr("bearer:hidden"))
    traced = Traced(settings_for(sqlite_database(), otel=True, ipfs=gone))
    with traced.server as server:
        account = server.new_user()
        with account.client as client:
            traced.forget()
            assert client.get("/v1/files/nothing-at-all").status_code in {400, 404, 422}
            request, _ = traced.trace("GET /v1/files/{file_id}")
            assert request.status.status_code is StatusCode.UNSET
            traced.forget()
            answer = client.put("/v1/files?name=x", content=os.urandom(600 * KIB))
            assert answer.status_code == 503
            request, others = traced.trace("PUT /v1/files")
    assert request.status.status_code is StatusCode.ERROR
    assert (request.attributes or {})["error.type"] == "503"
    failed = [span for span in others if span.status.status_code is StatusCode.ERROR]
    assert {(span.attributes or {})["error.type"] for span in failed} == {"NODE_UNAVAILABLE"}
    assert "hidden" not in said(traced.all())


def test_work_of_nobody_has_no_span(traced: Traced) -> None:
    """The worker and the housekeeper ask the database all the time."""
    database = traced.server.services.database
    traced.forget()
    with database.session_scope() as session:
        session.connection().exec_driver_sql("SELECT 1")
    assert traced.all() == ()


def test_a_request_that_is_not_sampled(
    sqlite_database: DatabaseMaker, settings_for: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By OpenTelemetry's own variable: no span at all, of nothing."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    traced = Traced(settings_for(sqlite_database(), otel=True))
    with traced.server as server:
        account = server.new_user()
        with account.client:
            account.upload(b"unseen", "a name")
    assert traced.all() == ()


@pytest.mark.parametrize("told", ["", "x" * 50, f"00-{TRACE}-{PARENT}", "00-" + "0" * 2000])
def test_a_traceparent_that_is_none(traced: Traced, told: str) -> None:
    """Begins a trace of its own, and no error."""
    with traced.server.client() as anybody:
        assert anybody.get("/healthz", headers={"traceparent": told}).status_code == 200
    request, _ = traced.trace("GET /healthz")
    assert request.parent is None


def test_spans_are_sent_by_otlp(
    sqlite_database: DatabaseMaker, settings_for: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To where the standard variables say, with what they say, and the last of them at the end."""
    got: list[tuple[str, str | None, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, self.headers["x-tenant"], body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        running = threading.Thread(target=collector.serve_forever)
        running.start()
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=ours")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        settings = settings_for(sqlite_database(), otel=True)
        with Server(settings) as server, server.client() as anybody:
            assert anybody.get("/healthz").status_code == 200
        collector.shutdown()
        running.join()
    [(path, tenant, body)] = got
    assert (path, tenant) == ("/v1/traces", "ours")
    [resource] = ExportTraceServiceRequest.FromString(body).resource_spans
    told = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert told["service.name"] == "on-api"
    assert told["deployment.environment"] == "test"
    [scope] = resource.scope_spans
    assert [span.name for span in scope.spans] == ["GET /healthz"]


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ON_API_", "OTEL_"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | {"ON_API_SECRET_KEY": "x" * 32} | environment,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_is_imported_when_it_is_off() -> None:
    """Neither SDK nor exporter; the framework itself imports OpenTelemetry's interface. And no
    request passes through anything."""
    done = run(
        "import sys; from on_api.main import create_app; app = create_app();"
        "print(sorted(name for name in sys.modules if name.startswith("
        "('opentelemetry.sdk', 'opentelemetry.exporter', 'opentelemetry.proto',"
        " 'google.protobuf'))));"
        "print([each.cls.__name__ for each in app.user_middleware], type(app.gateway).__name__)"
    )
    assert done.returncode == 0, done.stderr
    modules, stack = done.stdout.splitlines()
    assert modules == "[]"
    assert "Traced" not in stack


def test_without_the_extra() -> None:
    """One sentence, with the cure."""
    done = run(
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None;"
        "from on_api.core.tracing import Tracing; Tracing()"
    )
    assert done.stderr.strip().endswith(
        "ON_API_OTEL needs OpenTelemetry: pip install 'on-api[otel]', or unset it."
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
)
def test_what_is_not_there_is_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than ignored: spans would be missed later."""
    monkeypatch.setenv(name, value)
    with pytest.raises(StartupError, match=name):
        Tracing()
