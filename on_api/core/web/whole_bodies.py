"""Bodies that are read completely before the endpoint runs: JSON, and forms without files.

Routes use a `WholeBody` each. No body takes more memory than `MAX_BODY_BYTES` or more time than the
settings allow, and its digests, if the client sent any, match. Uploads are streamed instead, by
`request_bodies.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import params
from fastapi._compat import ModelField, Undefined
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.types import Message, Receive

from on_api.core.errors import BadRequest, PayloadTooLarge, RequestTimeout, UnsupportedMediaType
from on_api.core.server_settings import ConnectionSettings
from on_api.core.web.digests import SentDigests
from on_api.core.web.header_values import TEXT_CODINGS, read_parameters
from on_api.core.web.inputs import DeclaredOptions, read_pairs
from on_api.core.web.json_text import RepeatedName, read_json

MAX_BODY_BYTES = 1024 * 1024
"""Bytes of the largest body that is read completely; a larger one is refused."""
URLENCODED, FORM_DATA = "application/x-www-form-urlencoded", "multipart/form-data"


class WholeBody:
    """Reader of one route's bodies: as a form if the route declares one, else as JSON."""

    def __init__(self, field: ModelField) -> None:
        """Create a reader. `field` is what FastAPI has made of the route's body parameter."""
        body = field.field_info
        self._form_fields = DeclaredOptions.of_form(body) if isinstance(body, params.Form) else None

    async def read(
        self, request: Request, limits: ConnectionSettings, observe: Callable[[bytes], None] | None
    ) -> Any:
        """Read the body, and return it as FastAPI's validation takes it: a JSON value; a form's
        `FormData`, which the caller closes; the bytes of a body that isn't declared as JSON;
        `Undefined` for no body. `observe` is called with each piece as it comes, to hash it.

        Raises `PayloadTooLarge`, `RequestTimeout`, `UnsupportedMediaType`, `BadRequest` (also for
        a wrong digest), and `RequestValidationError` for invalid JSON.
        """
        _refuse_declared_too_large(request)
        _refuse_other_charset(request.headers.get("content-type", ""))
        receive = _bounded(_in_time(request.receive, limits), observe)
        request = Request(request.scope, _digests_checked(receive, request.scope["headers"]))
        if self._form_fields is None:
            return _json_of(await request.body(), request.headers.get("content-type"))
        return await _form_of(request, self._form_fields)


def _json_of(text: bytes, content_type: str | None) -> Any:
    """Return the value of a JSON body; `Undefined` for an empty one. A body of another type is
    returned as it is: validation then names the mistake."""
    if not text:
        return Undefined
    if content_type is None or not _is_json(content_type):
        return text
    try:
        return read_json(text)
    except RepeatedName as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.") from None
    except json.JSONDecodeError as error:
        # In the form of FastAPI's own errors.
        invalid = {"type": "json_invalid", "loc": ("body", error.pos)}
        raise RequestValidationError([invalid]) from None
    except (ValueError, RecursionError):
        raise BadRequest("The request body can't be parsed.") from None


def _is_json(content_type: str) -> bool:
    """Return whether it is `application/json`, or another type that ends in `+json`."""
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


async def _form_of(request: Request, declared: DeclaredOptions) -> FormData:
    """Return the fields of a form in either encoding; without a Content-Type it is URL-encoded.
    Raises `UnsupportedMediaType` for a body of another type, `BadRequest` for undeclared fields."""
    content_type = request.headers.get("content-type")
    media_type = None if content_type is None else read_parameters(content_type)[0]
    if media_type == FORM_DATA:
        form = await request.form()
        try:
            declared.check(name for name, _ in form.multi_items())
        except BadRequest:
            await form.close()
            raise
        return form
    if media_type not in {None, URLENCODED}:
        raise UnsupportedMediaType(f"Send a form as {URLENCODED} or {FORM_DATA}.")
    # Not by `request.form()`: Starlette reads bytes that aren't percent-encoded as Latin-1.
    pairs: list[tuple[str, str | UploadFile]] = [*read_pairs(await request.body())]
    declared.check(name for name, _ in pairs)
    return FormData(pairs)


def _refuse_declared_too_large(request: Request) -> None:
    """Raise `PayloadTooLarge` before anything is read, if Content-Length says that it would be too
    much. `_bounded` refuses what isn't declared."""
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise PayloadTooLarge


def _refuse_other_charset(content_type: str) -> None:
    """Raise `UnsupportedMediaType` for a `charset` other than UTF-8 (or a part of it, as ASCII is):
    JSON and forms are read as UTF-8."""
    if "charset" not in content_type.lower():
        return
    charset = read_parameters(content_type)[1].get("charset", "utf-8")
    if TEXT_CODINGS.get(charset.lower()) != "utf-8":
        raise UnsupportedMediaType("Content-Type: the body must be sent as UTF-8.")


def _in_time(receive: Receive, limits: ConnectionSettings) -> Receive:
    """Return `receive`, bounded in time: it raises `RequestTimeout` when nothing of the body comes
    for `body_idle_timeout` seconds, or the body isn't complete after `body_timeout` seconds. The
    second bound is for clients that send a byte now and then."""
    loop = asyncio.get_running_loop()
    end = loop.time() + limits.body_timeout
    is_whole = False

    async def receive_in_time() -> Message:
        nonlocal is_whole
        if is_whole:  # what is waited for now is the end of the connection
            return await receive()
        try:
            async with asyncio.timeout_at(min(end, loop.time() + limits.body_idle_timeout)):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout("The request body was received too slowly.") from None
        is_whole = not message.get("more_body", False)
        return message

    return receive_in_time


def _bounded(receive: Receive, observe: Callable[[bytes], None] | None) -> Receive:
    """Return `receive`, bounded in size: it raises `PayloadTooLarge` beyond `MAX_BODY_BYTES`. Each
    piece of the body is passed to `observe`."""
    received_bytes = 0

    async def receive_bounded() -> Message:
        nonlocal received_bytes
        message = await receive()
        piece = message.get("body", b"")
        received_bytes += len(piece)
        if received_bytes > MAX_BODY_BYTES:
            raise PayloadTooLarge
        if observe is not None:
            observe(piece)
        return message

    return receive_bounded


def _digests_checked(receive: Receive, headers: Iterable[tuple[bytes, bytes]]) -> Receive:
    """Return `receive`, which at the body's end raises `BadRequest` unless the body has the digests
    that the headers declare. They were sent by the client, to find damage on the way."""
    digests = SentDigests(headers)
    if not digests:
        return receive

    async def receive_checked() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            digests.update(message.get("body", b""))
            if not message.get("more_body", False):
                digests.check()
        return message

    return receive_checked
