"""Refusal of input that would otherwise be ignored: unknown and repeated options in query and form,
codings of the body, repeated headers.

Ignoring them would serve another request than the client meant (`?visiblity=private` would store a
public file). The allowed options are those that a route declares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Union, get_args, get_origin
from urllib.parse import unquote_to_bytes

from fastapi import params
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_flat_params
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from starlette.types import Scope

from on_api.core.errors import BadRequest, UnsupportedMediaType

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
"""Headers that may have one value only and change the meaning of the request: with two values none
is the right one."""

_QUERY = "on_api.query"
_MAX_SHOWN_LENGTH = 64
"""Characters of a name that an error repeats."""


class DeclaredOptions:
    """The options that a route declares, in its query or as fields of its form."""

    def __init__(self, kind: str, repeatable: Mapping[str, bool]) -> None:
        self._kind = kind
        self._repeatable = repeatable
        """Names of the options; True if the option is a list."""

    @classmethod
    def of_query(cls, dependant: Dependant) -> DeclaredOptions:
        """Return the options of a route's query."""
        fields = (f for f in get_flat_params(dependant) if isinstance(f.field_info, params.Query))
        return cls("query parameter", {f.alias: is_list(f.field_info) for f in fields})

    @classmethod
    def of_form(cls, body: params.Form) -> DeclaredOptions:
        """Return the fields of a route's form."""
        model = body.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise TypeError(f"{model} is not a form")
        fields = model.model_fields.items()
        return cls("form field", {info.alias or name: is_list(info) for name, info in fields})

    def check(self, names: Iterable[str]) -> None:
        """Raise `BadRequest` for a name that isn't declared, or is repeated without being a list.
        Names are case-sensitive."""
        seen: set[str] = set()
        for name in names:
            repeatable = self._repeatable.get(name)
            if repeatable is None:
                raise BadRequest(self._unknown(name))
            if name in seen and not repeatable:
                raise BadRequest(f"{name}: this {self._kind} is given more than once.")
            seen.add(name)

    def check_query(self, scope: Scope) -> None:
        """Raise `BadRequest` for a query with other options than these, or one that can't be
        read."""
        pairs = query_of(scope)
        if pairs:
            self.check(name for name, _ in pairs)
            if b";" in scope["query_string"]:
                self._refuse_semicolons(scope["query_string"])

    def _refuse_semicolons(self, text: bytes) -> None:
        """Refuse `name=a;visibility=private`: one option to on-api, two to its author."""
        for piece in text.split(b"&"):
            for after in piece.split(b";")[1:]:
                name, equals, _ = after.decode("latin-1").partition("=")
                if equals and name in self._repeatable:
                    raise BadRequest(
                        f"{name}: separate query parameters with &; write %3B for a ; within a"
                        " value."
                    )

    def _unknown(self, name: str) -> str:
        shown = _shown(name.encode())
        near = get_close_matches(name[:_MAX_SHOWN_LENGTH].lower(), self._repeatable, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return f"{shown or '(empty)'}: unknown {self._kind}.{hint}"


def query_of(scope: Scope) -> list[tuple[str, str]]:
    """Return the options of a request's query, parsed once. Raises `BadRequest` if it isn't
    UTF-8."""
    pairs: list[tuple[str, str]] | None = scope.get(_QUERY)
    if pairs is None:
        pairs = scope[_QUERY] = list(read_pairs(scope["query_string"]))
    return pairs


def read_pairs(text: bytes) -> Iterator[tuple[str, str]]:
    """Yield the names and values of a query or a URL-encoded form, in order. Separated by `&` only
    (WHATWG URL). Raises `BadRequest` for text that is not UTF-8."""
    for piece in text.split(b"&"):
        if piece:
            raw_name, _, raw_value = (part.replace(b"+", b" ") for part in piece.partition(b"="))
            try:
                yield unquote_to_bytes(raw_name).decode(), unquote_to_bytes(raw_value).decode()
            except UnicodeDecodeError:
                raise BadRequest(f"{_shown(raw_name)}: the name or value is not UTF-8.") from None


def refuse_misread(scope: Scope) -> None:
    """Refuse a request whose headers declare a coding or a partial body, which on-api doesn't
    support, or repeat a header of `ONCE`.

    Raises `BadRequest` or `UnsupportedMediaType`.
    """
    seen: set[bytes] = set()
    may_have_body = scope["method"] not in {"GET", "HEAD"}
    for name, value in scope["headers"]:
        if name in ONCE:
            if name in seen:
                raise BadRequest(f"{name.decode().title()}: this header was sent more than once.")
            seen.add(name)
        elif name == b"content-encoding" and may_have_body and not _is_identity(value):
            # RFC 9110, section 8.4; what is accepted instead: section 15.5.16.
            raise UnsupportedMediaType(
                "Content-Encoding: compressed request bodies are not supported; send the body"
                " without a content coding.",
                headers={"Accept-Encoding": "identity"},
            )
    if b"content-range" in seen and may_have_body:
        # Sent by `curl -C - -T`: the rest of a file would pass for the whole (RFC 9110, 14.5).
        raise BadRequest(
            "Content-Range: partial uploads are not supported; send the complete file."
        )


def _is_identity(value: bytes) -> bool:
    codings = (coding.strip().lower() for coding in value.decode("latin-1").split(","))
    return all(coding in {"", "identity"} for coding in codings)


def is_list(field: FieldInfo) -> bool:
    """Return whether a parameter may be repeated."""
    return _holds_list(field.annotation)


def _holds_list(annotation: object) -> bool:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _holds_list(get_args(annotation)[0])
    if origin in {Union, UnionType}:
        return any(map(_holds_list, get_args(annotation)))
    return origin is list


def _shown(name: bytes) -> str:
    """Return a name fit for an error message: short, printable."""
    text = name[:_MAX_SHOWN_LENGTH].decode(errors="replace")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
