"""What a client says of its request in the query, in a form or in headers, and would not be heard:
unknown and repeated options, codings of the body, a header that comes twice.

Each of them is refused, since what is passed over makes another request than the one that was meant
(`?visiblity=private` would store a public file). Knows what is allowed from what a route declares.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Union, get_args, get_origin
from urllib.parse import unquote_to_bytes, urlencode

from fastapi import params
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_flat_params
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from on_api.core.errors import BadRequest, RequestTimeout, UnsupportedMediaType
from on_api.core.setting_groups import ConnectionSettings
from on_api.core.web.header_values import TEXT_CODINGS, read_parameters
from on_api.core.web.json_text import RepeatedName, read_json

ONCE = frozenset(
    {
        b"authorization",
        b"content-range",
        b"content-type",
        b"idempotency-key",
        b"if-range",
        b"on-api-passphrase",
        b"on-api-share-password",
        b"range",
    }
)
"""Headers of one value, which decide what is done: of two values none is the right one."""

URLENCODED, FORM_DATA = "application/x-www-form-urlencoded", "multipart/form-data"

_MAX_SHOWN = 64
"""Characters of a name that an answer repeats."""


class DeclaredOptions:
    """The options that a route declares, in its query or as fields of its form."""

    def __init__(self, kind: str, repeatable: Mapping[str, bool]) -> None:
        self._kind = kind
        self._repeatable = repeatable
        """By name: whether it is a list."""

    @classmethod
    def of_query(cls, dependant: Dependant) -> DeclaredOptions:
        """Those of a route's query."""
        fields = (f for f in get_flat_params(dependant) if isinstance(f.field_info, params.Query))
        return cls("query parameter", {f.alias: _is_list(f.field_info) for f in fields})

    @classmethod
    def of_form(cls, body: params.Form) -> DeclaredOptions:
        """Those of the form that a route's body is."""
        model = body.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise TypeError(f"{model} is no form")
        fields = model.model_fields.items()
        return cls("form field", {info.alias or name: _is_list(info) for name, info in fields})

    def check(self, names: Iterable[str]) -> None:
        """Raise `BadRequest` for a name that isn't declared, or comes twice without being a list's.
        Names are case-sensitive."""
        seen: set[str] = set()
        for name in names:
            repeatable = self._repeatable.get(name)
            if repeatable is None:
                raise BadRequest(self._unknown(name))
            if name in seen and not repeatable:
                raise BadRequest(f"{name}: given twice as a {self._kind}.")
            seen.add(name)

    def check_query(self, text: bytes) -> None:
        """Raise `BadRequest` for a query of other options than these, or one that can't be read."""
        if not text:
            return
        self.check(name for name, _ in read_pairs(text))
        if b";" in text:
            self._refuse_semicolons(text)

    def _refuse_semicolons(self, text: bytes) -> None:
        """Refuse `name=a;visibility=private`: one name to us, two options to its writer."""
        for piece in text.split(b"&"):
            for after in piece.split(b";")[1:]:
                name, equals, _ = after.decode("latin-1").partition("=")
                if equals and name in self._repeatable:
                    raise BadRequest(f"{name}: part options by &; write %3B for ; in a value.")

    def _unknown(self, name: str) -> str:
        shown = _shown(name.encode())
        near = get_close_matches(name[:_MAX_SHOWN].lower(), self._repeatable, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return f"{shown or '(empty)'}: no {self._kind} that is known here.{hint}"


def read_pairs(text: bytes) -> Iterator[tuple[str, str]]:
    """The names and values of a query or of a form in its form, in their order. Parted by `&` only
    (WHATWG URL). Raises `BadRequest` for what is not UTF-8."""
    for piece in text.split(b"&"):
        if piece:
            raw_name, _, raw_value = (part.replace(b"+", b" ") for part in piece.partition(b"="))
            try:
                yield unquote_to_bytes(raw_name).decode(), unquote_to_bytes(raw_value).decode()
            except UnicodeDecodeError:
                raise BadRequest(f"{_shown(raw_name)}: not UTF-8.") from None


def refuse_misread(scope: Scope) -> None:
    """Refuse a request whose headers say of its body what isn't looked at: a coding, a part of a
    whole; or that say two things where there is one.

    Raises `BadRequest` or `UnsupportedMediaType`.
    """
    seen: set[bytes] = set()
    may_have_body = scope["method"] not in {"GET", "HEAD"}
    for name, value in scope["headers"]:
        if name in ONCE:
            if name in seen:
                raise BadRequest(f"{name.decode().title()}: this header was sent twice.")
            seen.add(name)
        elif name == b"content-encoding" and may_have_body and not _is_identity(value):
            # RFC 9110, section 8.4; what is accepted instead: section 15.5.16.
            raise UnsupportedMediaType(
                "Content-Encoding: bodies are taken as they are; send it without a coding.",
                headers={"Accept-Encoding": "identity"},
            )
    if b"content-range" in seen and may_have_body:
        # As `curl -C - -T` sends: the rest of a file would pass for the whole (RFC 9110, 14.5).
        raise BadRequest("Content-Range: a part of a file can't be stored; send the whole.")


class WholeRequest(Request):
    """A request whose body is read whole: JSON, or the fields of a form."""

    async def json(self) -> object:
        """The value of the JSON body. Raises `BadRequest` for one that says a thing twice, and what
        FastAPI understands for one that is no JSON."""
        try:
            return read_json(await self.body())
        except RepeatedName as error:
            raise BadRequest(f"The JSON is not valid: {error}.") from None


def in_time(receive: Receive, limits: ConnectionSettings) -> Receive:
    """The messages of a body that is read whole. Raises `RequestTimeout` when nothing of it comes
    for a while, or not all of it in time: whoever sends a byte now and then is no client."""
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
            raise RequestTimeout("The body was too slow to come.") from None
        is_whole = not message.get("more_body", False)
        return message

    return receive_in_time


def refuse_other_charset(content_type: str) -> None:
    """Refuse text in another charset than UTF-8, which JSON and forms are read as."""
    if "charset" not in content_type.lower():
        return
    charset = read_parameters(content_type)[1].get("charset", "utf-8")
    if TEXT_CODINGS.get(charset.lower()) != "utf-8":
        raise UnsupportedMediaType("Content-Type: send the body as UTF-8.")


async def read_form(request: Request, declared: DeclaredOptions) -> Request:
    """The request, its form's fields checked; its body is as FastAPI reads it right.

    Raises `UnsupportedMediaType` for a body of another type, `BadRequest` for other fields.
    """
    content_type = request.headers.get("content-type")
    essence = None if content_type is None else read_parameters(content_type)[0]
    if essence == FORM_DATA:
        form = await request.form()
        try:
            declared.check(name for name, _ in form.multi_items())
        except BadRequest:
            await form.close()
            raise
        return request
    if essence not in {None, URLENCODED}:
        raise UnsupportedMediaType(f"Send a form: {URLENCODED} or {FORM_DATA}.")
    pairs = list(read_pairs(await request.body()))
    declared.check(name for name, _ in pairs)
    # FastAPI takes bytes that aren't percent-encoded for Latin-1.
    exact: list[Message] = [{"type": "http.request", "body": urlencode(pairs).encode()}]

    async def receive() -> Message:
        return exact.pop() if exact else await request.receive()

    return Request(request.scope, receive)


def _is_identity(value: bytes) -> bool:
    codings = (coding.strip().lower() for coding in value.decode("latin-1").split(","))
    return all(coding in {"", "identity"} for coding in codings)


def _is_list(field: FieldInfo) -> bool:
    return _holds_list(field.annotation)


def _holds_list(annotation: object) -> bool:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _holds_list(get_args(annotation)[0])
    if origin in {Union, UnionType}:
        return any(map(_holds_list, get_args(annotation)))
    return origin is list


def _shown(name: bytes) -> str:
    """A name as it may stand in an answer: short, printable."""
    text = name[:_MAX_SHOWN].decode(errors="replace")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
