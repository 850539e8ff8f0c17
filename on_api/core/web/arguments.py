"""Arguments of an endpoint, made of a request.

FastAPI reads an endpoint's signature (`Dependant`), and validates each parameter that a request
has. Its own `solve_dependencies` walks that tree at every request; here this is done once, when the
route is built: the order of the dependencies, which of them are the same, and the values of
parameters that are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import iscoroutinefunction, isfunction
from typing import Any

from fastapi._compat import ModelField, get_missing_field_error
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import request_body_to_args, request_params_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.security import SecurityScopes
from starlette.requests import Request
from starlette.responses import Response

from on_api.core.web.inputs import is_list, query_of

_NOT_CALLED: Any = object()
"""Result of a dependency that was not called because its own parameters are invalid."""


class Arguments:
    """Makes the arguments of one endpoint, by the names of its parameters.

    Its dependencies are coroutines and classes, called on the event loop in the order of the
    signature, each once.
    """

    def __init__(self, dependant: Dependant, *, embed_body_fields: bool) -> None:
        """Read the signature. `embed_body_fields` means that the body is an object with a member
        for each parameter. Raises `TypeError` for a dependency of another kind."""
        self._embed_body_fields = embed_body_fields
        self._calls: list[_Call] = []
        self._indexes: dict[tuple[Any, tuple[str, ...]], int] = {}
        self._endpoint = self._call_of(dependant, ())
        self._responds = any(call.response is not None for call in (*self._calls, self._endpoint))

    async def of(self, request: Request, body: Any) -> tuple[dict[str, Any], Response | None]:
        """Return the arguments for a request, and the response on which the endpoint or a
        dependency may set status and headers (None if none takes it).

        `body` is the body that was read: a JSON value, a `FormData`, bytes of another type, or
        `Undefined`. Raises `RequestValidationError`, and the errors of dependencies.
        """
        response = _unset_response() if self._responds else None
        errors: list[Any] = []
        results: list[Any] = []
        for call in self._calls:
            values = await self._values(call, request, body, response, results, errors)
            if values is None:
                results.append(_NOT_CALLED)
            elif call.is_async:
                results.append(await call.function(**values))
            else:
                results.append(call.function(**values))
        values = await self._values(self._endpoint, request, body, response, results, errors)
        if errors or values is None:
            raise RequestValidationError(errors)
        return values, response

    async def _values(
        self,
        call: _Call,
        request: Request,
        body: Any,
        response: Response | None,
        results: Sequence[Any],
        errors: list[Any],
    ) -> dict[str, Any] | None:
        """Return the arguments of one call; None when any of them is invalid: then `errors` has the
        reason."""
        values = {name: results[place] for name, place in call.takes}
        is_valid = not errors or not any(value is _NOT_CALLED for value in values.values())
        found: list[Any] = []
        for fields in call.fields:
            values |= fields.read(request, found)
        if call.body:
            given, mistakes = await request_body_to_args(call.body, body, self._embed_body_fields)
            values |= given
            found += mistakes
        if found or not is_valid:
            errors += found
            return None
        if call.request is not None:
            values[call.request] = request
        if call.response is not None:
            values[call.response] = response
        if call.scopes is not None:
            values[call.scopes] = call.granted
        return values

    def _index_of(self, dependant: Dependant, scopes: tuple[str, ...]) -> int:
        """Return the index of a dependency's result; the same dependency is called once."""
        scopes += tuple(each for each in dependant.own_oauth_scopes or () if each not in scopes)
        key = dependant.call, scopes
        if key not in self._indexes:
            call = self._call_of(dependant, scopes)
            self._indexes[key] = len(self._calls)
            self._calls.append(call)
        return self._indexes[key]

    def _call_of(self, dependant: Dependant, scopes: tuple[str, ...]) -> _Call:
        takes = [(each.name, self._index_of(each, scopes)) for each in dependant.dependencies]
        function: Any = dependant.call
        is_async = iscoroutinefunction(function) or iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 (an instance of which one is a method)
        )
        if not is_async and isfunction(function):
            raise TypeError(f"{function.__qualname__} must be a coroutine, as every dependency")
        if (
            dependant.cookie_params
            or dependant.background_tasks_param_name
            or dependant.http_connection_param_name
            or dependant.websocket_param_name
        ):
            raise TypeError(f"{function} takes what nothing else here does: see `_Call`")
        fields = [
            _Fields(dependant.path_params, "path", _in_path),
            _Fields(dependant.query_params, "query", _in_query),
            _Fields(dependant.header_params, "header", _in_headers),
        ]
        return _Call(
            function,
            is_async,
            tuple((name, place) for name, place in takes if name is not None),
            tuple(each for each in fields if each),
            dependant.body_params,
            dependant.request_param_name,
            dependant.response_param_name,
            dependant.security_scopes_param_name,
            SecurityScopes(list(scopes)),
        )


@dataclass(frozen=True, slots=True)
class _Call:
    """Recipe for calling a dependency or the endpoint. Names are those of its own parameters."""

    function: Any
    is_async: bool
    takes: tuple[tuple[str, int], ...]
    """Names, and the index of the result for each."""
    fields: tuple[_Fields, ...]
    body: list[ModelField]
    request: str | None
    response: str | None
    scopes: str | None
    granted: SecurityScopes
    """Scopes required at this dependency's place in the signature."""


class _Fields:
    """Parameters of one kind: in the path, in the query or in headers."""

    def __init__(self, fields: list[ModelField], kind: str, given: _Given) -> None:
        """Prepare them. `kind` is the name used in errors. Raises `TypeError` for a mutable
        default, which one request could change for the next."""
        self._kind = kind
        self._given = given
        self._fields = {_sent_as(each.alias, kind): each for each in fields}
        self._required = {each.alias for each in fields if each.field_info.is_required()}
        self._lists = {each.alias for each in fields if is_list(each.field_info)}
        left_out = [each for each in fields if each.alias not in self._required]
        self._defaults, mistakes = request_params_to_args(left_out, {})
        if mistakes:
            raise TypeError(f"defaults are invalid: {mistakes}")
        hash(tuple(self._defaults.values()))

    def __bool__(self) -> bool:
        return bool(self._fields)

    def read(self, request: Request, errors: list[Any]) -> Mapping[str, Any]:
        """Return the valid values; append mistakes to `errors`."""
        given = self._given(request)
        values = dict(self._defaults)
        for name, field in self._fields.items():
            place = self._kind, field.alias
            if name in given:
                value = given[name] if field.alias in self._lists else given[name][-1]
                values[field.name], mistakes = field.validate(value, values, loc=place)
                errors += mistakes
            elif field.alias in self._required:
                errors.append(get_missing_field_error(place))
        return values


_Given = Callable[[Request], Mapping[str, list[Any]]]
"""Function that returns a request's parameters of one kind: a list of all values sent, by name."""


def _in_path(request: Request) -> Mapping[str, list[Any]]:
    return {name: [value] for name, value in request.path_params.items()}


def _in_query(request: Request) -> Mapping[str, list[Any]]:
    given: dict[str, list[Any]] = {}
    for name, value in query_of(request.scope):
        given.setdefault(name, []).append(value)
    return given


def _in_headers(request: Request) -> Mapping[str, list[Any]]:
    given: dict[str, list[Any]] = {}
    for name, value in request.scope["headers"]:  # the first of several, as in FastAPI
        given.setdefault(name.decode("latin-1"), [value.decode("latin-1")])
    return given


def _sent_as(alias: str, kind: str) -> str:
    """Return the name under which a request has a parameter: headers are in lower case."""
    return alias.lower() if kind == "header" else alias


def _unset_response() -> Response:
    """Return a response with nothing set, as FastAPI passes it to endpoints."""
    response = Response()
    del response.headers["content-length"]
    response.status_code = None  # type: ignore[assignment]  # FastAPI's word for "not set"
    return response
