"""Middleware around every request: its id, its line in the access log, common headers, and the
count of bytes sent. Pure ASGI."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from prometheus_client import Counter, Histogram
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from on_api.core.errors import OnApiError
from on_api.core.logging import EXTRA, request_id
from on_api.core.metrics import Metrics
from on_api.core.services.traffic.metering import Ticket

access_logger = logging.getLogger("on_api.access")
logger = logging.getLogger(__name__)

REQUEST_ID = b"x-request-id"
NOSNIFF = (b"x-content-type-options", b"nosniff")

TICKET = "on_api.ticket"
"""Key in the scope of the `Ticket` that counts an answer."""
CUT = "on_api.cut"
"""Key in the scope of the reason why an answer was cut, or failed."""

new_request_number = partial(random.Random().getrandbits, 64)  # noqa: S311 (no secret)
"""Return a random number of 64 bits, from which an id of 16 hexadecimal digits is made."""
_ALWAYS_ANSWERED = {"/healthz", "/metrics"}
_LINKS = "/s/"
"""Prefix of a path that is followed by the secret of a share."""


class _Series(NamedTuple):
    requests: Counter
    seconds: Histogram
    sent: Counter


def new_request_id() -> str:
    """Return a new request id, for the log and the answer's header."""
    return f"{new_request_number():016x}"


class RequestRecord:
    """Reports a finished request: its line in the access log and its metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._series: dict[tuple[str, str, int], _Series] = {}

    def tell(
        self,
        method: str,
        path: str,
        route: str,
        client: str,
        status: int,
        outcome: str,
        sent: int,
        seconds: float,
    ) -> None:
        """Report a request. `route` is the pattern of the path: the number of series must not grow
        with the stored objects. `sent` is the bytes of the body. The request's id is in its context
        variable."""
        series = self._series.get((method, route, status))
        if series is None:
            # Cached: looking it up by its labels takes longer than counting.
            series = self._series[method, route, status] = _Series(
                self._metrics.requests.labels(method, route, status),
                self._metrics.request_seconds.labels(method, route),
                self._metrics.sent_bytes.labels(route),
            )
        series.requests.inc()
        series.seconds.observe(seconds)
        series.sent.inc(sent)
        access_logger.info(
            "%s %s",
            method,
            _loggable(path),
            extra={
                EXTRA: {
                    "status": status or "-",
                    "outcome": outcome,
                    "bytes_out": sent,
                    "ms": round(seconds * 1000, 1),
                    "client": client,
                }
            },
        )


class RequestContext:
    """Gives each request an id, and reports it when it is over. Outermost middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._record = RequestRecord(metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = new_request_id()
        token = request_id.set(identity)
        started = time.perf_counter()
        status = 0
        sent = 0

        async def send_marked(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [header for header in message["headers"] if header[0] != REQUEST_ID]
                headers.append((REQUEST_ID, identity.encode()))
                if not any(header[0] == NOSNIFF[0] for header in headers):
                    headers.append(NOSNIFF)
                message["headers"] = headers
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        outcome = "done"
        try:
            await self._app(scope, receive, send_marked)
        except (ClientDisconnect, asyncio.CancelledError) as error:
            outcome = "client gone"
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            outcome = scope.get(CUT, outcome)
            self._record.tell(
                scope["method"],
                scope["path"],
                pattern_of(scope),
                scope["client"][0] if scope.get("client") else "-",
                status,
                outcome,
                sent,
                time.perf_counter() - started,
            )
            request_id.reset(token)


class ErrorAnswers:
    """Turns every exception into an answer. Innermost middleware: the others always see an answer.

    `respond` returns it, for a scope and an exception. If an answer has already begun, it ends
    there, and the server cuts the connection, so that the client sees that it is incomplete.
    """

    def __init__(self, app: ASGIApp, respond: Callable[[Scope, Exception], ASGIApp]) -> None:
        self._app = app
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        has_begun = False

        async def send_seen(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_seen)
        except Exception as error:
            if scope["type"] != "http" or (has_begun and isinstance(error, ClientDisconnect)):
                raise
            if not has_begun:
                await self._respond(scope, error)(scope, receive, send)
            elif CUT not in scope:
                scope[CUT] = "failed"
                logger.exception("a request failed")


class Metering:
    """Counts the bytes of an answer's body before each piece is sent, with the ticket that the
    endpoint has put into the scope (`TICKET`).

    Answers without a ticket, answers to HEAD, and errors are not counted. When a budget ends in the
    middle of an answer, the answer is cut.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0
        is_head = scope["method"] == "HEAD"

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status < 400 and not is_head and (size := len(message.get("body", b""))):
                ticket: Ticket | None = scope.get(TICKET)
                if ticket is not None and not ticket.take(size):
                    try:
                        await ticket.more(size)
                    except OnApiError as error:
                        scope[CUT] = f"cut, {error.reason}"
                        raise
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        finally:
            ticket: Ticket | None = scope.get(TICKET)
            if ticket is not None:
                ticket.close(status)


class RequestSlots:
    """Counter of requests in flight, up to a limit."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._taken = 0

    def take(self) -> bool:
        """Take a place. Returns False if none is free."""
        if self._taken >= self._limit:
            return False
        self._taken += 1
        self._metrics.in_flight = self._taken
        return True

    def give(self) -> None:
        """Give a place back."""
        self._taken -= 1
        self._metrics.in_flight = self._taken


class InFlightLimit:
    """Refuses requests for which there is no place, so that those in flight can end. Health and
    metrics always pass.

    `refuse` returns the 503 for a path.
    """

    def __init__(
        self, app: ASGIApp, slots: RequestSlots, refuse: Callable[[str], ASGIApp], metrics: Metrics
    ) -> None:
        self._app = app
        self._slots = slots
        self._refuse = refuse
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http" or scope["path"] in _ALWAYS_ANSWERED:
            await self._app(scope, receive, send)
            return
        if not self._slots.take():
            self._metrics.refused.inc()
            await self._refuse(scope["path"])(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._slots.give()


def _loggable(path: str) -> str:
    return f"{_LINKS}…" if path.startswith(_LINKS) else path


def pattern_of(scope: Scope) -> str:
    """Return the route's pattern, not the path: the number of series must not grow with stored
    objects."""
    route = getattr(scope.get("route"), "path", None)
    if route is None:
        return "(none)"
    if route.count("/") == scope["path"].count("/"):
        return str(route)
    if ":path}" in route:  # the number of its segments varies
        return str(route)
    # FastAPI names the route within its router; the part before it is the router's own prefix.
    segments = scope["path"].split("/")
    return "/".join(segments[: 1 + max(0, len(segments) - 1 - route.count("/"))]) + str(route)
