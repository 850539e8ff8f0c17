"""Plain serving: the requests that come most often, answered without the framework's price.

A route is declared with FastAPI as every other: its signature, document, scopes and errors are
there and nowhere else. `served_plainly` gives it a short cut beside that: a coroutine which answers
the request as clients usually make it, and returns None for every other, which FastAPI then serves
as if there were no short cut. So a short cut says nothing about errors in requests: it leaves those
to the one place that words them. What it raises is rendered as everywhere.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextvars import Context
from dataclasses import dataclass
from inspect import unwrap
from typing import TypeVar

from pydantic import BaseModel
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from on_api.core.errors import BadRequest
from on_api.core.services.accounts import access
from on_api.core.services.accounts.access import Principal
from on_api.core.services.container import Services
from on_api.core.web.dependencies import bearer_key, scopes_of
from on_api.core.web.inputs import UNUSUAL, in_time, read_pairs
from on_api.core.web.json_text import read_json
from on_api.core.web.routing import MAX_BODY_BYTES

_SERVED = "_on_api_served_plainly"
_JSON = b"application/json"

Endpoint = TypeVar("Endpoint", bound=Callable[..., object])
Model = TypeVar("Model", bound=BaseModel)


class PlainRequest:
    """A request of a caller who may make it, and carries no `Idempotency-Key`."""

    __slots__ = (
        "_admitted",
        "_receive",
        "_taken",
        "headers",
        "principal",
        "query",
        "scope",
        "services",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        headers: dict[bytes, bytes],
        query: dict[str, str],
        principal: Principal,
        services: Services,
    ) -> None:
        self.scope = scope
        self.headers = headers
        self.query = query
        """The parameters that the short cut reads, no others, each once."""
        self.principal = principal
        self.services = services
        self._admitted = services.authenticator.generation
        self._receive = receive
        self._taken: list[Message] = []

    async def receive(self) -> Message:
        """The server's messages, those first that were taken already."""
        return self._taken.pop(0) if self._taken else await self._receive()

    async def json(self, model: type[Model]) -> Model | None:
        """The body, where it is JSON that the model takes; None where FastAPI has to say what is
        wrong with it, or has to ask for the key anew: while the body came it may have ended. It can
        be read anew after that."""
        if self.headers.get(b"content-type") != _JSON:
            return None
        taken, size, has_more = self._taken, 0, True
        self._receive = in_time(self._receive, self.services.settings.connections)
        while has_more:
            message = await self._receive()
            taken.append(message)
            size += len(message.get("body", b""))
            if message["type"] != "http.request" or size > MAX_BODY_BYTES:
                return None
            has_more = message.get("more_body", False)
        if self.services.authenticator.generation != self._admitted:
            return None
        body = b"".join(message.get("body", b"") for message in taken)
        try:
            return model.model_validate(read_json(body))
        except (ValueError, RecursionError):  # Pydantic's errors are ValueErrors
            return None


PlainServer = Callable[[PlainRequest, str], Awaitable[ASGIApp | None]]
"""Answers a request, given its path's parameter (empty if there is none)."""


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """An answer that is JSON already."""

    status: int
    body: bytes

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send it, with the headers of FastAPI's own."""
        length = b"%d" % len(self.body)
        headers = [(b"content-length", length), (b"content-type", _JSON)]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def served_plainly(
    serve: PlainServer, *, query: Collection[str] = ()
) -> Callable[[Endpoint], Endpoint]:
    """Give an endpoint its short cut: `serve` is asked first, where the query has no other
    parameters than these. To be written below the router's decorator."""

    def mark(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _SERVED, (serve, frozenset(query)))
        return endpoint

    return mark


def read_query(text: bytes, known: Collection[str]) -> dict[str, str] | None:
    """A query's parameters, where none but those known are there, each once, in UTF-8."""
    if not text:
        return {}
    if b";" in text:
        return None
    try:
        given = list(read_pairs(text))
    except BadRequest:
        return None
    query = dict(given)
    return query if len(query) == len(given) and query.keys() <= set(known) else None


def canonical_id(text: str) -> uuid.UUID | None:
    """The id that is written exactly so in our answers."""
    try:
        found = uuid.UUID(text)
    except ValueError:
        return None
    return found if str(found) == text else None


@dataclass(frozen=True, slots=True)
class _Plain:
    route: Route
    serve: PlainServer
    known: frozenset[str]
    """The parameters in a query that `serve` reads."""
    scopes: tuple[access.Scope, ...]


class PlainRoutes:
    """Stands before the router: serves what can be served plainly, and looks for the route of
    everything else among those of the same resource, not among all.

    `routes` are of `/VERSION/RESOURCE[/PARAMETER[/…]]`.
    """

    def __init__(self, router: ASGIApp, routes: Iterable[BaseRoute], services: Services) -> None:
        self._router = router
        self._services = services
        self._plain: dict[tuple[str, str], _Plain] = {}
        self._near: dict[str, list[Route]] = {}
        self._learning: dict[tuple[int, str], asyncio.Task[Principal | None]] = {}
        for route in routes:
            if not isinstance(route, Route):
                continue
            resource, shape, _ = _read(route.path)
            self._near.setdefault(resource, []).append(route)
            marked = getattr(route.endpoint, _SERVED, None)
            if marked is not None:
                serve, known = marked
                plain = _Plain(route, serve, known, scopes_of(unwrap(route.endpoint)))
                self._plain.update({(method, shape): plain for method in route.methods or ()})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http" or scope.get("root_path"):
            await self._router(scope, receive, send)
            return
        resource, shape, parameter = _read(scope["path"])
        plain = self._plain.get((scope["method"], shape))
        if plain is not None:
            request = await self._admit(scope, receive, plain)
            if request is not None:
                scope["route"] = plain.route
                answer = await plain.serve(request, parameter)
                if answer is not None:
                    await answer(scope, request.receive, send)
                    return
                receive = request.receive
        for route in self._near.get(resource, ()):
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                await route.handle(scope, receive, send)
                return
        # Only the whole router knows what to say: 404, 405, another path.
        await self._router(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, plain: _Plain) -> PlainRequest | None:
        """The request, if its caller may make it and nothing has to be counted for that."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if len(headers) < len(scope["headers"]) or not headers.keys().isdisjoint(UNUSUAL):
            return None
        query = read_query(scope["query_string"], plain.known)
        key = bearer_key(headers.get(b"authorization", b"").decode("latin-1"))
        if key is None or query is None:
            return None
        principal = self._services.authenticator.recall(key) or await self._learn(key)
        if principal is None or not all(map(principal.allows, plain.scopes)):
            return None
        return PlainRequest(scope, receive, headers, query, principal, self._services)

    async def _learn(self, key: str) -> Principal | None:
        """The same from the database: once for all who come with a key while it is asked."""
        authenticator = self._services.authenticator
        # Not what was asked for before the last news.
        asked = authenticator.generation, key
        learning = self._learning.get(asked)
        if learning is None:
            work = self._services.strangers.in_thread(authenticator.learn, key)
            learning = self._learning[asked] = asyncio.create_task(work, context=Context())
            learning.add_done_callback(lambda _: self._learning.pop(asked))
        return await asyncio.shield(learning)


def _read(path: str) -> tuple[str, str, str]:
    """Of a path: its resource, its shape (with `{}` for the parameter), the parameter."""
    parts = path.split("/", 4)
    resource = "/".join(parts[:3])
    if len(parts) < 4:
        return resource, path, ""
    parameter, parts[3] = parts[3], "{}"
    return resource, "/".join(parts), parameter
