"""Bodies that are read completely before the endpoint runs: JSON, and forms without files. Uploads
are streamed instead (`request_bodies.py`)."""

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
"""Bytes of the largest body that is read completely."""
URLENCODED, FORM_DATA = "application/x-www-form-urlencoded", "multipart/form-data"


class WholeBody:
    """Reader of one route's body: as the fields of a form, else as JSON."""

    def __init__(self, field: ModelField) -> None:
        """Create a reader. `field` is FastAPI's field of the route's body."""
        body = field.field_info
        self._form = DeclaredOptions.of_form(body) if isinstance(body, params.Form) else None

    async def read(
        self, request: Request, limits: ConnectionSettings, look: Callable[[bytes], None] | None
    ) -> Any:
        """Return the input for FastAPI's validation: a JSON value, a form's fields, bytes of
        another type, `Undefined` for no body. Each piece is passed to `look`.

        Raises `PayloadTooLarge`, `RequestTimeout`, `UnsupportedMediaType`, `BadRequest`, and
        `RequestValidationError` for invalid JSON.
        """
        _refuse_too_large(request)
        _refuse_other_charset(request.headers.get("content-type", ""))
        receive = _bounded(_in_time(request.receive, limits), look)
        request = Request(request.scope, _compared(receive, request.scope["headers"]))
        if self._form is None:
            return _json_of(await request.body(), request.headers.get("content-type"))
        return await _form_of(request, self._form)


def _json_of(text: bytes, content_type: str | None) -> Any:
    if not text:
        return Undefined
    if content_type is None or not _is_json(content_type):
        return text
    try:
        return read_json(text)
    except RepeatedName as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.") from None
    except json.JSONDecodeError as error:
        mistake = {"type": "json_invalid", "loc": ("body", error.pos)}
        raise RequestValidationError([mistake]) from None
    except (ValueError, RecursionError):
        raise BadRequest("The request body can't be parsed.") from None


def _is_json(content_type: str) -> bool:
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


async def _form_of(request: Request, declared: DeclaredOptions) -> FormData:
    """Return the form's fields. Raises `UnsupportedMediaType` for a body of another type,
    `BadRequest` for undeclared fields."""
    content_type = request.headers.get("content-type")
    essence = None if content_type is None else read_parameters(content_type)[0]
    if essence == FORM_DATA:
        form = await request.form()
        try:
            declared.check(name for name, _ in form.multi_items())
        except BadRequest:
            await form.close()
            raise
        return form
    if essence not in {None, URLENCODED}:
        raise UnsupportedMediaType(f"Send a form as {URLENCODED} or {FORM_DATA}.")
    # Starlette decodes bytes that aren't percent-encoded as Latin-1.
    pairs: list[tuple[str, str | UploadFile]] = [*read_pairs(await request.body())]
    declared.check(name for name, _ in pairs)
    return FormData(pairs)


def _refuse_too_large(request: Request) -> None:
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise PayloadTooLarge


def _refuse_other_charset(content_type: str) -> None:
    """Refuse text in another charset than UTF-8, in which JSON and forms are read."""
    if "charset" not in content_type.lower():
        return
    charset = read_parameters(content_type)[1].get("charset", "utf-8")
    if TEXT_CODINGS.get(charset.lower()) != "utf-8":
        raise UnsupportedMediaType("Content-Type: the body must be sent as UTF-8.")


def _in_time(receive: Receive, limits: ConnectionSettings) -> Receive:
    """Bound the time of a body's messages. Raises `RequestTimeout` when no byte comes for
    `body_idle_timeout`, or not all of it within `body_timeout`: a client could otherwise send a
    byte now and then."""
    loop = asyncio.get_running_loop()
    end = loop.time() + limits.body_timeout
    is_whole = False

    async def receive_in_time() -> Message:
        nonlocal is_whole
        if is_whole:
            return await receive()
        try:
            async with asyncio.timeout_at(min(end, loop.time() + limits.body_idle_timeout)):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout("The request body was received too slowly.") from None
        is_whole = not message.get("more_body", False)
        return message

    return receive_in_time


def _bounded(receive: Receive, look: Callable[[bytes], None] | None) -> Receive:
    """Bound a body to `MAX_BODY_BYTES`, and pass each piece to `look`."""
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        body = message.get("body", b"")
        received += len(body)
        if received > MAX_BODY_BYTES:
            raise PayloadTooLarge
        if look is not None:
            look(body)
        return message

    return receive_bounded


def _compared(receive: Receive, headers: Iterable[tuple[bytes, bytes]]) -> Receive:
    """Compare a body with the digests that the headers declare."""
    digests = SentDigests(headers)
    if not digests:
        return receive

    async def receive_compared() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            digests.update(message.get("body", b""))
            if not message.get("more_body", False):
                digests.check()
        return message

    return receive_compared
