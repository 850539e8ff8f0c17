"""Middleware that makes the span of each request. In the stack only if traces are switched on."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from on_api.core.tracing import CARRIED, CARRIED_LENGTH, Tracing, kind_of
from on_api.core.web.middleware import REQUEST_ID, pattern_of

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class TracedRequests:
    """Names a request's span by its method and its route's pattern; `route` is that of an
    application without routes. A path is never shown: it may be a link's secret."""

    def __init__(self, app: ASGIApp, tracing: Tracing, route: str | None = None) -> None:
        self._app = app
        self._tracing = tracing
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        with self._tracing.request(method, _carried(scope)) as span:

            async def send_seen(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set_attribute("http.response.status_code", status)
                    if status >= 500:
                        self._tracing.failed(span, str(status))
                    for name, value in message["headers"]:
                        if name == REQUEST_ID:
                            span.set_attribute("on_api.request_id", value.decode("latin-1"))
                await send(message)

            try:
                await self._app(scope, receive, send_seen)
            except BaseException as error:
                self._tracing.failed(span, kind_of(error))
                raise
            finally:
                route = self._route or pattern_of(scope)
                span.set_attribute("http.route", route)
                span.update_name(f"{method} {route}")


def _carried(scope: Scope) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in CARRIED and len(value) <= CARRIED_LENGTH:
            found.setdefault(name.decode(), value.decode("latin-1"))
    return found
