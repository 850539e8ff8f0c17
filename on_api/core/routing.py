"""How a route reads its request and documents its errors."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive

from on_api.core.errors import OnApiError, PayloadTooLarge
from on_api.core.services.idempotency import AlreadyAnswered, Answered

MAX_BODY_BYTES = 1024 * 1024
"""Of a body that is read whole (JSON, a login form). Uploads are streamed and have limits of
their own."""


class ApiRoute(APIRoute):
    """A route whose whole-read body is bounded, and which is done once per `Idempotency-Key`.

    An endpoint that streams takes the `Request` itself, and its attempt from
    `dependencies.AttemptDep`. The key is claimed, and the claim ended, in `dependencies.py`.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, _in_one_thread(endpoint), **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, fed no more than `MAX_BODY_BYTES`."""
        handle = super().get_route_handler()
        reads_whole_body = self.body_field is not None

        async def handle_once(request: Request) -> Response:
            if reads_whole_body:
                _refuse_too_large(request)
                digest = hashlib.sha256(request.url.query.encode())
                request = Request(request.scope, _bounded(request.receive, digest.update))
                request.state.body_digest = digest
            try:
                response = await handle(request)
            except AlreadyAnswered as repeat:
                return _again(repeat.answer)
            if reads_whole_body:
                body = bytes(response.body)
                request.state.answer = Answered(digest.digest(), response.status_code, body)
            return response

        return handle_once


def _in_one_thread(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint as a coroutine; a plain function runs in a thread.

    FastAPI would do so itself, but then ask for a second thread to look at what was returned,
    while the request's transaction is open: with all threads waiting for a row or for SQLite's
    writer's place that this transaction has, nobody could go on.
    """
    if inspect.iscoroutinefunction(endpoint):
        return endpoint

    @functools.wraps(endpoint)
    async def run(**arguments: Any) -> Any:
        return await run_in_threadpool(endpoint, **arguments)

    return run


def documented(*errors: type[OnApiError]) -> dict[int | str, dict[str, Any]]:
    """`responses=` for the errors an operation may answer besides those that all share.

    Holds the reasons only; each version's document adds its own body to them.
    """
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        before = responses.get(error.status, {}).get("description")
        text = f"`{error.reason}` {error.summary}"
        responses[error.status] = {"description": f"{before} · {text}" if before else text}
    return responses


def _refuse_too_large(request: Request) -> None:
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise PayloadTooLarge


def _bounded(receive: Receive, look: Callable[[bytes], None]) -> Receive:
    """Pass messages on, no more than `MAX_BODY_BYTES` of them, showing each to `look`."""
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        body = message.get("body", b"")
        received += len(body)
        if received > MAX_BODY_BYTES:
            raise PayloadTooLarge
        look(body)
        return message

    return receive_bounded


def _again(answer: Answered) -> Response:
    return Response(
        answer.body,
        answer.status,
        headers={"Idempotent-Replayed": "true", "Cache-Control": "no-store"},
        media_type="application/json" if answer.body else None,
    )


UPLOAD_FORM: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "visibility": {"type": "string", "enum": ["public", "private"]},
                    # Without an example Swagger would fill in the word "string".
                    "name": {
                        "type": "string",
                        "description": "Instead of the part's filename.",
                        "example": "",
                    },
                    "meta": {"type": "string", "description": "A JSON object.", "example": ""},
                    "file": {
                        "type": "array",
                        "items": {"type": "string", "format": "binary"},
                        "description": "One or several files.",
                    },
                },
            }
        }
    },
}
"""The form of an upload, documented by hand: the endpoint reads the stream itself. The options come
first, so that Swagger sends them before the file."""

RAW_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
"""The raw body of an upload."""
