"""The renderer of errors: every exception becomes a body in the format of the requested version."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from on_api.core.errors import (
    BadRequest,
    InternalError,
    MethodNotAllowed,
    NotFound,
    OnApiError,
    PayloadTooLarge,
    ServiceUnavailable,
)
from on_api.core.logging import log_failure, request_id
from on_api.core.schemas.errors import Failure, FailureError, Problem
from on_api.core.web.error_texts import describe
from on_api.core.web.middleware import CUT, NOSNIFF, REQUEST_ID, new_request_id

logger = logging.getLogger(__name__)

Renderer = Callable[[OnApiError], Response]


def render_failure(error: OnApiError) -> Response:
    """Render an error for v1: the Pinning Service API's `Failure`."""
    body = Failure(error=FailureError(reason=error.reason, details=error.details))
    return JSONResponse(body.model_dump(), error.status, headers=error.headers)


def render_problem(error: OnApiError) -> Response:
    """Render an error for v2: problem details (RFC 9457)."""
    body = Problem(
        type="about:blank",
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.details,
        code=error.reason,
        instance=f"urn:on-api:request:{request_id.get() or ''}",
    )
    return JSONResponse(
        body.model_dump(),
        error.status,
        headers=error.headers,
        media_type="application/problem+json",
    )


@dataclass(frozen=True, slots=True)
class ErrorFormat:
    """Format of errors, and its documentation."""

    render: Renderer
    models: tuple[type[BaseModel], ...]
    """Model of the body, followed by the models it is made of."""
    media_type: str


FAILURE = ErrorFormat(render_failure, (Failure, FailureError), "application/json")
PROBLEM = ErrorFormat(render_problem, (Problem,), "application/problem+json")


class ErrorHandlers:
    """Renders errors in the format of the path's longest matching prefix, v1's if none matches."""

    def __init__(self, formats: Mapping[str, ErrorFormat]) -> None:
        self._formats = dict(sorted(formats.items(), key=lambda item: -len(item[0])))

    def respond(self, scope: Scope, error: Exception) -> Response:
        """Return the response to a request that has raised an exception. An unexpected one is
        logged, under the request id that the response names."""
        path = scope["path"]
        if isinstance(error, OnApiError):
            return self.answer(path, error)
        if isinstance(error, RequestValidationError):
            return self.render(path, BadRequest(describe(error.errors())))
        if isinstance(error, HTTPException):
            return self.render(path, _translate(Request(scope), error))
        if isinstance(error, ClientDisconnect):
            # The client is gone; the status is for the log (nginx uses it for the same).
            return Response(status_code=499)
        scope[CUT] = "failed"
        logger.error("a request failed", exc_info=error)
        details = (
            "An internal error occurred on the server; the log entry has the request ID"
            f" {request_id.get()}."
        )
        return self.render(path, InternalError(details))

    def too_busy(self, path: str) -> Response:
        """Return the 503 for a request above the limit of requests in flight."""
        return self.render(
            path, ServiceUnavailable("Too many simultaneous requests.", retry_after=1)
        )

    def refusal(self, path: str, error: OnApiError) -> Response:
        """Return the response to input that is not a request and so passes no middleware."""
        identity = new_request_id()
        token = request_id.set(identity)
        try:
            response = self.render(path, error)
        finally:
            request_id.reset(token)
        response.raw_headers += [(REQUEST_ID, identity.encode()), NOSNIFF]
        return response

    def answer(self, path: str, error: OnApiError) -> Response:
        """Return the response for an error on a path, and log the cause of a server error."""
        if error.status >= 500:
            log_failure(logger, f"answered {error.status} {error.reason}", error.__cause__)
        return self.render(path, error)

    def render(self, path: str, error: OnApiError) -> Response:
        """Return the response for an error on a path."""
        for prefix, wording in self._formats.items():
            if path == prefix or path.startswith(f"{prefix}/"):
                return wording.render(error)
        return render_failure(error)


def _translate(request: Request, error: HTTPException) -> OnApiError:
    """Return our error for one that Starlette or FastAPI has raised."""
    if error.status_code == MethodNotAllowed.status:
        return MethodNotAllowed(headers={"Allow": ", ".join(_methods_at(request))})
    if error.status_code == PayloadTooLarge.status:
        return PayloadTooLarge()
    if 400 <= error.status_code < 500 and error.status_code != NotFound.status:
        return BadRequest("The request body can't be parsed.")
    return NotFound()


def _methods_at(request: Request) -> list[str]:
    """Return the methods of all routes at the requested path; the framework names those of one
    route only."""
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]
