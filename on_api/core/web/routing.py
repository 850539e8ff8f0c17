"""Routes: reading a request, running its endpoint, documenting its errors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from copy import copy
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from anyio import CancelScope
from fastapi import APIRouter, Request, Response
from fastapi._compat import Undefined
from fastapi.dependencies.utils import get_dependant
from fastapi.utils import is_body_allowed_for_status_code
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.routing import BaseRoute, compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from on_api.core.errors import OnApiError
from on_api.core.models import Database
from on_api.core.services.accounts.idempotency import (
    AlreadyAnswered,
    Answered,
    IdempotencyClaim,
    IdempotencyService,
)
from on_api.core.services.container import Services
from on_api.core.web.arguments import Arguments
from on_api.core.web.head_requests import HeadRoute
from on_api.core.web.inputs import DeclaredOptions, refuse_misread
from on_api.core.web.whole_bodies import WholeBody

CLAIMING = frozenset({"POST", "PUT"})
"""Methods for which an `Idempotency-Key` is honoured."""
ATTEMPT = "on_api.attempt"
"""Key in the scope of the result of claiming the request's `Idempotency-Key`."""
BODY_DIGEST = "on_api.body_digest"
"""Key in the scope of the hash of query and body, for a request with such a key."""

T = TypeVar("T")


class Transaction:
    """The one transaction of a request, not yet begun. If the request has claimed an
    `Idempotency-Key`, its answer is recorded in the same transaction.

    `dependencies.SessionDep` and `TransactionDep` pass it to a route.
    """

    def __init__(
        self,
        request: Request,
        response: Response,
        database: Database,
        idempotency: IdempotencyService,
    ) -> None:
        """Create it. `response` is FastAPI's own, on which an endpoint sets status and headers."""
        self._request = request
        self._response = response
        self._database = database
        self._idempotency = idempotency

    def run(self, work: Callable[[Session], T]) -> T:
        """Run `work`, record its result as the answer, and commit. GET and HEAD read a snapshot."""
        writes = self._request.method not in {"GET", "HEAD"}
        with self._database.session_scope(write=writes) as session:
            result = work(session)
            self.record(session, result)
        return result

    def record(self, session: Session, result: object) -> None:
        """Record the answer in a session that the caller commits."""
        claim = self._request.scope.get(ATTEMPT)
        if not isinstance(claim, IdempotencyClaim):
            return
        route: ApiRoute = self._request.scope["route"]
        answer = Answered(
            self._request.scope[BODY_DIGEST].digest(),
            route.status_of(self._response),
            route.rendered(result),
            tuple(self._response.headers.items()),
        )
        self._idempotency.finish(session, claim, answer)


def services_of(request: Request) -> Services:
    """Return the process's services."""
    services: Services = request.scope["app"].state.services
    return services


class ChecksQuery:
    """A dependency that calls `ApiRoute.check_query` itself, as soon as the caller is
    authenticated."""


class ApiRoute(HeadRoute):
    """A route with a bounded body (unless it streams), done once per `Idempotency-Key`. Undeclared
    options in query or form are refused.

    A synchronous endpoint runs in one call in a worker thread, together with its transaction. One
    that streams is a coroutine and takes the `Request` itself, and its attempt from
    `dependencies.attempt_of`. The key is claimed in `dependencies.get_principal`; the answer is
    recorded in the transaction that commits the request's effect: by `Transaction`, or by the
    service that gets the attempt.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self._made_of = endpoint, options
        super().__init__(path, _in_worker_thread(endpoint), **options)
        self.app = _application(self._respond)

    def below(self, prefix: str) -> ApiRoute:
        """Return the route with a prefix before its path. Raises `TypeError` for a prefix with
        parameters."""
        if "{" in prefix:
            raise TypeError(f"{prefix} has parameters, which the built route doesn't know")
        path = prefix + self.path
        if self._embed_body_fields:
            # A form's model is named after its path.
            endpoint, options = self._made_of
            route = ApiRoute(path, endpoint, **options)
        else:
            route = copy(self)
            route.path = path
            route.path_regex, route.path_format, route.param_convertors = compile_path(path)
        route.unique_id = _operation_id(route)
        return route

    def check_query(self, request: Request) -> None:
        """Refuse options that the route doesn't declare. Raises `BadRequest`."""
        self._query.check_query(request.scope)

    def status_of(self, injected: Response | None) -> int:
        """Return the status of an answer: what the endpoint has set on its response, else the
        route's own."""
        return (injected and injected.status_code) or self.status_code or 200

    def rendered(self, result: object) -> bytes:
        """Return the body of the answer, as FastAPI would render an endpoint's result. Raises
        `TypeError` or `ValueError` for a result that doesn't fit the declared model."""
        if self.response_field is None:
            if result is not None:
                raise TypeError(f"{self.path} answers what it isn't declared to")
            return b"null" if is_body_allowed_for_status_code(self.status_code) else b""
        value, errors = self.response_field.validate(result, {}, loc=("response",))
        if errors:
            raise ValueError(f"{self.path} answers what it isn't declared to")
        return self.response_field.serialize_json(
            value,
            by_alias=self.response_model_by_alias,
            exclude_unset=self.response_model_exclude_unset,
            exclude_none=self.response_model_exclude_none,
        )

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that makes the response to a request, in place of FastAPI's own."""
        self._query = DeclaredOptions.of_query(self.dependant)

        async def check_query(request: Request) -> None:
            self.check_query(request)

        dependencies = self.dependant.dependencies
        if not any(isinstance(each.call, ChecksQuery) for each in dependencies):
            dependencies.append(get_dependant(path=self.path, call=check_query))
        body = None if self.body_field is None else WholeBody(self.body_field)
        streams = body is None and iscoroutinefunction(self._made_of[0])
        arguments = Arguments(self.dependant, embed_body_fields=self._embed_body_fields)

        async def respond(request: Request) -> Response:
            refuse_misread(request.scope)
            digest = None
            may_claim = not streams and request.method in CLAIMING
            if may_claim and "idempotency-key" in request.headers:
                digest = hashlib.sha256(request.url.query.encode())
                request.scope[BODY_DIGEST] = digest
            look = None if digest is None else digest.update
            try:
                if body is None:
                    return await self._run(arguments, request, Undefined)
                given = await body.read(request, services_of(request).settings.connections, look)
                try:
                    return await self._run(arguments, request, given)
                finally:
                    if isinstance(given, FormData):
                        await given.close()
            except AlreadyAnswered as repeat:
                return _again(repeat.answer)
            except BaseException:
                await _give_back(request)
                raise

        self._respond = respond
        return respond

    async def _run(self, arguments: Arguments, request: Request, given: Any) -> Response:
        """Call the endpoint, and make a response of what it returns."""
        values, injected = await arguments.of(request, given)
        result = await self.endpoint(**values)
        if isinstance(result, Response):
            return result
        body = self.rendered(result)
        media_type = "application/json" if body else None
        response = Response(body, self.status_of(injected), media_type=media_type)
        if injected is not None:
            response.raw_headers += injected.raw_headers
        return response


def _operation_id(route: ApiRoute) -> str:
    """Return the endpoint's name as most client languages spell it: `uploadFiles`, the same in
    every version."""
    name = route.operation_id or route.name
    if route.methods == {"HEAD"}:
        name = f"head_{name.partition('_')[2]}"
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def add_flat(to: APIRouter, router: APIRouter) -> None:
    """Add every route of a router of `ApiRoute`s to another router, below its prefix.

    FastAPI's `include_router` builds each route anew on every level, a fifth of the start-up time,
    and searches the included routers on each level for each request, more than half of the time of
    a short one.

    Routes for HEAD come first: one for GET answers HEAD only if there is no other.
    """
    for route in sorted(router.routes, key=_is_not_for_head):
        if not isinstance(route, ApiRoute):
            raise TypeError(f"{route} is no ApiRoute")
        to.routes.append(route.below(to.prefix))
    _let_fixed_paths_win([route for route in to.routes if isinstance(route, ApiRoute)])


def _let_fixed_paths_win(routes: Sequence[ApiRoute]) -> None:
    """Exclude from routes with parameters the fixed paths of other routes: a method that
    `/users/me` doesn't offer gets 405 there, and not the answer of `/users/{user_id}` for an
    account named `me`."""
    fixed = {route.path for route in routes if not route.param_convertors}
    for route in routes:
        taken = [path for path in sorted(fixed) if route.path_regex.match(path)]
        if route.param_convertors and taken:
            others = "|".join(map(re.escape, taken))
            route.path_regex = re.compile(f"(?!(?:{others})$){route.path_regex.pattern}")


def _is_not_for_head(route: BaseRoute) -> bool:
    return getattr(route, "methods", None) != {"HEAD"}


def documented(*errors: type[OnApiError]) -> dict[int | str, dict[str, Any]]:
    """Return `responses=` for the errors of an operation besides those that all share.

    Holds the reasons only; each version's document adds its own body to them.
    """
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        before = responses.get(error.status, {}).get("description")
        text = f"`{error.reason}` {error.summary}"
        responses[error.status] = {"description": f"{before} · {text}" if before else text}
    return responses


def _application(respond: Callable[[Request], Coroutine[Any, Any, Response]]) -> ASGIApp:
    """Return the ASGI application of a route. Errors are rendered outside of the router, for all
    routes alike."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        response = await respond(Request(scope, receive, send))
        await response(scope, receive, send)

    return application


def _in_worker_thread(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a synchronous endpoint as a coroutine that runs it, with its transaction, by one switch
    to a worker thread: with FastAPI's own, each further switch costs more than the database
    query."""
    if iscoroutinefunction(endpoint):
        return endpoint

    def call(values: dict[str, Any]) -> Any:
        transaction: Transaction | None = values.get("session")
        if transaction is None:
            return endpoint(**values)
        return transaction.run(lambda session: endpoint(**{**values, "session": session}))

    @wraps(endpoint)
    async def run(**values: Any) -> Any:
        return await run_in_threadpool(call, values)

    return run


async def _give_back(request: Request) -> None:
    """Release the claim of a failed request, so that it may be retried."""
    if not isinstance(claim := request.scope.get(ATTEMPT), IdempotencyClaim):
        return
    # If even that fails the claim expires by itself; the first error is the one to report.
    with CancelScope(shield=True), suppress(OnApiError):
        await run_in_threadpool(services_of(request).idempotency.release, claim)


def _again(answer: Answered) -> Response:
    return Response(
        answer.body,
        answer.status,
        headers={
            **dict(answer.headers),
            "idempotent-replayed": "true",
            "cache-control": "no-store",
        },
        media_type="application/json" if answer.body else None,
    )
