"""How a route reads its request, runs its endpoint and documents its errors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from copy import copy
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from anyio import CancelScope
from fastapi import APIRouter, Request, Response, params
from fastapi.dependencies.utils import get_dependant
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.routing import BaseRoute, compile_path
from starlette.types import Message, Receive

from on_api.core.errors import OnApiError, PayloadTooLarge
from on_api.core.models import Database
from on_api.core.services.accounts.idempotency import (
    AlreadyAnswered,
    Answered,
    Claim,
    IdempotencyService,
)
from on_api.core.setting_groups import ConnectionSettings
from on_api.core.web.digests import SentDigests
from on_api.core.web.head_requests import HeadRoute
from on_api.core.web.inputs import (
    DeclaredOptions,
    WholeRequest,
    in_time,
    read_form,
    refuse_misread,
    refuse_other_charset,
)

CLAIMING = frozenset({"POST", "PUT"})
"""Methods with which an `Idempotency-Key` is heard."""
MAX_BODY_BYTES = 1024 * 1024
"""Of a body that is read whole (JSON, a login form). Uploads are streamed and have limits of
their own."""


T = TypeVar("T")


class Transaction:
    """The one transaction of a request, not yet begun. Where the request has claimed an
    `Idempotency-Key`, its answer is recorded in it: there is never the one without the other.

    What `dependencies.SessionDep` and `TransactionDep` hand to a route.
    """

    def __init__(
        self,
        request: Request,
        response: Response,
        database: Database,
        idempotency: IdempotencyService,
    ) -> None:
        """`response`: FastAPI's own, by which an endpoint sets status and headers."""
        self._request = request
        self._response = response
        self._database = database
        self._idempotency = idempotency

    def run(self, work: Callable[[Session], T]) -> T:
        """Do the work and record what it returns as the answer; committed. GET reads a snapshot."""
        writes = self._request.method not in {"GET", "HEAD"}
        with self._database.session_scope(write=writes) as session:
            result = work(session)
            self.record(session, result)
        return result

    def record(self, session: Session, result: object) -> None:
        """Record the answer in a session that somebody else commits."""
        claim = getattr(self._request.state, "attempt", None)
        if not isinstance(claim, Claim):
            return
        route: ApiRoute = self._request.scope["route"]
        answer = Answered(
            self._request.state.body_digest.digest(),
            self._response.status_code or route.status_code or 200,
            route.rendered(result),
            tuple(self._response.headers.items()),
        )
        self._idempotency.finish(session, claim, answer)


class ChecksQuery:
    """A dependency that calls `ApiRoute.check_query` itself, as soon as it knows who asks."""


class ApiRoute(HeadRoute):
    """A route whose whole-read body is bounded, and which is done once per `Idempotency-Key`. What
    it doesn't declare, in a query or in a form, is refused.

    A plain endpoint runs in one visit to a thread, its transaction with it. One that streams is a
    coroutine and takes the `Request` itself, and its attempt from `dependencies.attempt_of`. The
    key is claimed in `dependencies.get_principal`; whoever commits what was asked for records the
    answer in the same transaction: `Transaction`, or the service that the attempt is given to.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self._made_of = endpoint, options
        super().__init__(path, _in_one_visit(endpoint), **options)

    def below(self, prefix: str) -> ApiRoute:
        """The same route, its path with a prefix. Raises `TypeError` for one with parameters."""
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
        """Refuse what the route doesn't declare. Raises `BadRequest`."""
        self._query.check_query(request.scope["query_string"])

    def rendered(self, result: object) -> bytes:
        """The body of the answer that FastAPI makes of an endpoint's result."""
        if self.response_field is None:
            return b""
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
        """FastAPI's handler, fed no more than `MAX_BODY_BYTES`."""
        self._query = DeclaredOptions.of_query(self.dependant)

        async def check_query(request: Request) -> None:
            self.check_query(request)

        dependencies = self.dependant.dependencies
        if not any(isinstance(each.call, ChecksQuery) for each in dependencies):
            dependencies.append(get_dependant(path=self.path, call=check_query))
        handle = super().get_route_handler()
        reads_whole_body = self.body_field is not None
        streams = not reads_whole_body and iscoroutinefunction(self._made_of[0])
        body = None if self.body_field is None else self.body_field.field_info
        form = DeclaredOptions.of_form(body) if isinstance(body, params.Form) else None

        async def handle_once(request: Request) -> Response:
            refuse_misread(request.scope)
            digest = None
            may_claim = not streams and request.method in CLAIMING
            if may_claim and "idempotency-key" in request.headers:
                digest = hashlib.sha256(request.url.query.encode())
                request.state.body_digest = digest
            if reads_whole_body:
                _refuse_too_large(request)
                refuse_other_charset(request.headers.get("content-type", ""))
                receive = in_time(request.receive, _limits(request))
                receive = _bounded(receive, None if digest is None else digest.update)
                request = WholeRequest(request.scope, _compared(receive, request.scope["headers"]))
                if form is not None:
                    request = await read_form(request, form)
            try:
                return await handle(request)
            except AlreadyAnswered as repeat:
                return _again(repeat.answer)
            except BaseException:
                await _give_back(request)
                raise

        return handle_once


def _operation_id(route: ApiRoute) -> str:
    """The endpoint's name as clients in most languages write it: `uploadFiles`, the same in every
    version."""
    name = route.operation_id or route.name
    if route.methods == {"HEAD"}:
        name = f"head_{name.partition('_')[2]}"
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def add_flat(to: APIRouter, router: APIRouter) -> None:
    """Add every route of a router of `ApiRoute`s to another one, below its prefix.

    With FastAPI's `include_router` each route is built anew on every level, a fifth of a start; and
    the included routers are looked through again on each level for each request, more than half of
    the time of a short one.

    Routes for HEAD come first: one for GET stands in for HEAD only where there is no other.
    """
    for route in sorted(router.routes, key=_is_not_for_head):
        if not isinstance(route, ApiRoute):
            raise TypeError(f"{route} is no ApiRoute")
        to.routes.append(route.below(to.prefix))
    _let_fixed_paths_win([route for route in to.routes if isinstance(route, ApiRoute)])


def _let_fixed_paths_win(routes: Sequence[ApiRoute]) -> None:
    """Keep routes with parameters from paths that are others' own: what `/users/me` doesn't offer
    is 405 there, and not what `/users/{user_id}` says of an account named `me`."""
    fixed = {route.path for route in routes if not route.param_convertors}
    for route in routes:
        taken = [path for path in sorted(fixed) if route.path_regex.match(path)]
        if route.param_convertors and taken:
            others = "|".join(map(re.escape, taken))
            route.path_regex = re.compile(f"(?!(?:{others})$){route.path_regex.pattern}")


def _is_not_for_head(route: BaseRoute) -> bool:
    return getattr(route, "methods", None) != {"HEAD"}


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


def _in_one_visit(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function as a coroutine, so that FastAPI makes no visits to threads of its own for
    it: each costs more than the question to the database."""
    if iscoroutinefunction(endpoint):
        return endpoint

    def visit(values: dict[str, Any]) -> Any:
        transaction: Transaction | None = values.get("session")
        if transaction is None:
            return endpoint(**values)
        return transaction.run(lambda session: endpoint(**{**values, "session": session}))

    @wraps(endpoint)
    async def run(**values: Any) -> Any:
        return await run_in_threadpool(visit, values)

    return run


async def _give_back(request: Request) -> None:
    """Free the claim of a request that failed: it may be tried again."""
    if not isinstance(claim := getattr(request.state, "attempt", None), Claim):
        return
    # Where even that fails the claim dies by itself; the first error is the one to tell.
    with CancelScope(shield=True), suppress(OnApiError):
        await run_in_threadpool(_idempotency(request).release, claim)


def _idempotency(request: Request) -> IdempotencyService:
    service: IdempotencyService = request.app.state.services.idempotency
    return service


def _limits(request: Request) -> ConnectionSettings:
    limits: ConnectionSettings = request.app.state.services.settings.connections
    return limits


def _refuse_too_large(request: Request) -> None:
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise PayloadTooLarge


def _bounded(receive: Receive, look: Callable[[bytes], None] | None) -> Receive:
    """Pass messages on, no more than `MAX_BODY_BYTES` of them, showing each to `look`."""
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
    """Pass messages on, and compare the body with the digests that the headers declare."""
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
