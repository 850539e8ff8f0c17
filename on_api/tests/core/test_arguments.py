"""Arguments of endpoints: those with which FastAPI would call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import httpx
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Cookie,
    Depends,
    FastAPI,
    Form,
    Header,
    Path,
    Query,
    Request,
    Security,
)
from fastapi.dependencies.utils import get_dependant
from fastapi.routing import APIRoute
from fastapi.security import OAuth2PasswordBearer, SecurityScopes
from pydantic import BaseModel

from on_api.core.web.arguments import Arguments


class Thing(BaseModel):
    """A body."""

    name: str
    size: int = 0


class Page:
    """A dependency that is a class."""

    def __init__(
        self,
        limit: Annotated[int, Query(ge=1, le=100)] = 10,
        tags: Annotated[list[str] | None, Query()] = None,
        size: Annotated[int, Header(alias="X-Size")] = 0,
    ) -> None:
        self.shown = {"limit": limit, "tags": tags, "size": size}


async def number_of(
    request: Request,
    key: Annotated[str, Header(alias="X-Key")] = "none",
) -> str:
    """A dependency that others have, counted for each request."""
    request.state.calls = getattr(request.state, "calls", 0) + 1
    return f"{key}:{request.state.calls}"


Number = Annotated[str, Depends(number_of)]


async def doubled(number: Number, factor: Annotated[float, Query(alias="by")] = 1.5) -> list[Any]:
    """A dependency of a dependency."""
    return [number, factor]


class Scoped(OAuth2PasswordBearer):
    """A dependency that asks for its scopes."""

    async def __call__(self, request: Request, scopes: SecurityScopes) -> str:  # type: ignore[override]
        """The scopes that are needed where it stands."""
        return " ".join(scopes.scopes)


scoped = Scoped("/token")
Writer = Annotated[str, Security(scoped, scopes=["read", "write"])]


async def needs_scopes(one: Annotated[str, Depends(scoped)], two: Writer, three: Writer) -> None:
    """Take the scopes of two dependencies."""


async def read_all(
    thing_id: Annotated[int, Path(ge=1)],
    page: Annotated[Page, Depends()],
    pair: Annotated[list[Any], Depends(doubled)],
    number: Number,
    wanted: Annotated[bool, Query()],
    default: Annotated[str, Query(alias="long-name")] = "left out",
) -> dict[str, Any]:
    """Return every argument of a request without a body."""
    return {
        "thing_id": thing_id,
        "page": page.shown,
        "pair": pair,
        "number": number,
        "wanted": wanted,
        "default": default,
    }


async def take_thing(thing: Thing, number: Number) -> dict[str, Any]:
    """Return a body that is one object."""
    return {"thing": thing.model_dump(), "number": number}


async def take_members(
    first: Annotated[int, Body()], second: Annotated[Thing, Body()], wanted: bool = False
) -> dict[str, Any]:
    """Return a body with a member for each parameter."""
    return {"first": first, "second": second.model_dump(), "wanted": wanted}


async def take_form(name: Annotated[str, Form()], size: Annotated[int, Form()] = 1) -> list[Any]:
    """Return the fields of a form."""
    return [name, size]


ENDPOINTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "/things/{thing_id}": ("GET", read_all),
    "/thing": ("POST", take_thing),
    "/members": ("POST", take_members),
    "/form": ("POST", take_form),
}


class OurRoute(APIRoute):
    """FastAPI's own reading of a request, and our arguments."""

    def get_route_handler(self) -> Any:
        """See `APIRoute`."""
        arguments = Arguments(self.dependant, embed_body_fields=self._embed_body_fields)
        endpoint = self.endpoint

        async def called(request: Request) -> Any:
            body: Any = None
            if self.body_field is not None:
                is_form = "form" in request.headers.get("content-type", "")
                body = await (request.form() if is_form else request.json())
            values, _ = await arguments.of(request, body)
            return self.response_class.value(await endpoint(**values))  # type: ignore[union-attr]

        return called


def served(route_class: type[APIRoute]) -> FastAPI:
    """The endpoints, by one way to call them."""
    router = APIRouter(route_class=route_class)
    for path, (method, endpoint) in ENDPOINTS.items():
        router.add_api_route(path, endpoint, methods=[method])
    app = FastAPI()
    app.include_router(router)
    return app


THEIRS, OURS = served(APIRoute), served(OurRoute)
THING = {"name": "a", "size": 3}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "url", "options"),
    [
        ("GET", "/things/7?wanted=true", {}),
        ("GET", "/things/7?wanted=1&limit=100&tags=a&tags=b&by=2&long-name=x%20y", {}),
        ("GET", "/things/7?wanted=no&long-name=&tags=", {"headers": {"X-Key": "k"}}),
        (
            "GET",
            "/things/7?wanted=0&limit=3&limit=4",
            {"headers": [("x-key", "a"), ("x-key", "b")]},
        ),
        ("GET", "/things/7?wanted=yes&default=unknown", {}),
        ("GET", "/things/7", {}),
        ("GET", "/things/7?wanted=1", {"headers": {"X-Size": "3"}}),
        ("GET", "/things/7?wanted=1", {"headers": {"x-size": "many"}}),
        ("GET", "/things/0?wanted=maybe&limit=0&by=x", {}),
        ("GET", "/things/x?limit=1000", {}),
        ("POST", "/thing", {"json": THING}),
        ("POST", "/thing", {"json": {"size": "many"}}),
        ("POST", "/thing", {"json": [THING]}),
        ("POST", "/members?wanted=1", {"json": {"first": 1, "second": THING}}),
        ("POST", "/members", {"json": {"first": "x"}}),
        ("POST", "/form", {"data": {"name": "a"}}),
        ("POST", "/form", {"data": {"name": "a", "size": "b"}}),
        ("POST", "/form", {"data": {"size": "4"}}),
    ],
)
async def test_arguments_are_those_of_fastapi(
    method: str, url: str, options: dict[str, Any]
) -> None:
    """Values and mistakes, in their order."""
    answers = []
    for app in (THEIRS, OURS):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            answer = await client.request(method, url, **options)
            answers.append((answer.status_code, answer.json()))
    assert answers[0] == answers[1]


@pytest.mark.anyio
async def test_a_scope_is_asked_for_where_it_stands() -> None:
    """Twice the same dependency with other scopes is two."""
    dependant = get_dependant(path="/", call=needs_scopes)
    arguments = Arguments(dependant, embed_body_fields=False)
    scope = {"type": "http", "path_params": {}, "query_string": b"", "headers": []}
    values, response = await arguments.of(Request(scope), None)
    assert values == {"one": "", "two": "read write", "three": "read write"}
    assert response is None


def blocking() -> int:
    """A dependency that is a plain function."""
    return 1


async def needs_blocking(number: Annotated[int, Depends(blocking)]) -> None:
    """It would block the event loop."""


async def needs_cookie(crumb: Annotated[str, Cookie()]) -> None:
    """Nothing here takes cookies."""


async def needs_background(tasks: BackgroundTasks) -> None:
    """Nor leaves anything for later: the worker does that."""


async def has_changing_default(words: Annotated[list[str], Query()] = ["a"]) -> None:  # noqa: B006
    """One request could change it for the next."""


@pytest.mark.parametrize(
    "endpoint", [needs_blocking, needs_cookie, needs_background, has_changing_default]
)
def test_what_is_not_understood_is_refused_when_the_route_is_built(endpoint: Any) -> None:
    """Not at a request."""
    with pytest.raises(TypeError):
        Arguments(get_dependant(path="/", call=endpoint), embed_body_fields=False)
