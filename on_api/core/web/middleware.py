"""Middleware around every request that FastAPI answers, in pure ASGI.

From the outside in: `RequestContext` (id, common headers, access log), `InFlightLimit` (the bound
on requests at once), `Metering` (the count of bytes sent) and `ErrorAnswers` (every exception
becomes an answer). What they tell each other is in the ASGI scope, under the keys `TICKET` and
`CUT`.
"""

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
"""Key in the scope for the `Ticket` that counts an answer; set by whoever makes the answer."""
CUT = "on_api.cut"
"""Key in the scope for the reason why an answer was cut, or failed, as the access log tells it."""

new_request_number = partial(random.Random().getrandbits, 64)  # noqa: S311 (no secret)
"""Return a random number of 64 bits, which is written as a request id of 16 hexadecimal digits."""
_ALWAYS_ANSWERED = {"/healthz", "/metrics"}
"""Paths that `InFlightLimit` lets pass, so that an overloaded process can still be watched."""
_SHARE_PREFIX = "/s/"
"""Beginning of the path of a share. What follows is its token, which must not be logged."""


class _Series(NamedTuple):
    """Prometheus series of one method, route and status."""

    requests: Counter
    seconds: Histogram
    sent: Counter


def new_request_id() -> str:
    """Return a new request id, for the log and the answer's header."""
    return f"{new_request_number():016x}"


class RequestReporter:
    """Writes the line of a finished request in the access log, and counts it in the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._series: dict[tuple[str, str, int], _Series] = {}

    def report(
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
        """Report a request that has ended. The access log takes its id from a context variable.

        `route` is the route's pattern, not the path: the number of series must not grow with the
        stored objects. `status` is 0 if no answer has begun, `outcome` a word such as "done", and
        `sent` the bytes of the body that were sent.
        """
        series = self._series.get((method, route, status))
        if series is None:
            # Kept, because finding a series by its labels takes longer than counting.
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
    """Gives each request an id, adds the common headers to its answer, and reports it when it is
    over. Outermost middleware, so that nothing goes unreported."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._reporter = RequestReporter(metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope: a request, or the lifespan, which passes unchanged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        this_id = new_request_id()
        token = request_id.set(this_id)
        started = time.perf_counter()
        status = 0
        sent = 0

        async def send_marked(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [header for header in message["headers"] if header[0] != REQUEST_ID]
                headers.append((REQUEST_ID, this_id.encode()))
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
            self._reporter.report(
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
    """Turns every exception of a request into an answer, which `respond` makes. Innermost
    middleware, so that the others see an answer instead of an exception.

    An answer that has begun can't be replaced. It ends where it is, and the server cuts the
    connection, so that the client sees that something is missing.
    """

    def __init__(self, app: ASGIApp, respond: Callable[[Scope, Exception], ASGIApp]) -> None:
        self._app = app
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope: a request, or the lifespan, which passes unchanged."""
        has_begun = False

        async def send_seen(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_seen)
        except Exception as error:
            # Nobody reads the rest of an answer whose client is gone: `RequestContext` reports it.
            if scope["type"] != "http" or (has_begun and isinstance(error, ClientDisconnect)):
                raise
            if not has_begun:
                await self._respond(scope, error)(scope, receive, send)
            elif CUT not in scope:
                scope[CUT] = "failed"
                logger.exception("a request failed")


class Metering:
    """Counts each piece of an answer's body before it is sent, on the answer's ticket (`TICKET`):
    never is more delivered than was counted.

    Bodies are not counted without a ticket, in answers to HEAD and in errors. If a budget is used
    up in the middle of an answer, the answer is cut there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope: a request, or the lifespan, which passes unchanged."""
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
                # `take` needs credit in memory. Where that is short, `more` waits for the database.
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
    """Counter of the requests in flight, with `limit` slots."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._taken = 0

    def take(self) -> bool:
        """Take a slot. Returns False if none is free."""
        if self._taken >= self._limit:
            return False
        self._taken += 1
        self._metrics.in_flight = self._taken
        return True

    def give(self) -> None:
        """Give a slot back. Once for each `take` that returned True."""
        self._taken -= 1
        self._metrics.in_flight = self._taken


class InFlightLimit:
    """Answers 503 to a request for which no slot is free, so that an overloaded process can finish
    those in flight. `/healthz` and `/metrics` need no slot.

    `refuse` makes the answer for a path.
    """

    def __init__(
        self, app: ASGIApp, slots: RequestSlots, refuse: Callable[[str], ASGIApp], metrics: Metrics
    ) -> None:
        self._app = app
        self._slots = slots
        self._refuse = refuse
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope: a request, or the lifespan, which passes unchanged."""
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
    """Return a path without the token of a share, which is a secret."""
    return f"{_SHARE_PREFIX}…" if path.startswith(_SHARE_PREFIX) else path


def pattern_of(scope: Scope) -> str:
    """Return the pattern of the route that has answered, such as `/v1/files/{file_id}`, with its
    router's prefix; `(none)` if no route matched."""
    pattern = getattr(scope.get("route"), "path", None)
    if pattern is None:
        return "(none)"
    if pattern.count("/") == scope["path"].count("/"):
        return str(pattern)
    if ":path}" in pattern:  # such a parameter takes any number of segments
        return str(pattern)
    # FastAPI may give the pattern within a router only. The path has more segments then: its first
    # ones are the router's prefix.
    segments = scope["path"].split("/")
    prefix_segments = max(0, len(segments) - 1 - pattern.count("/"))
    return "/".join(segments[: 1 + prefix_segments]) + str(pattern)
