"""Finds the route of a request among those of its resource, not among all of them.

Starlette matches one regular expression after the other: of a hundred routes the last one's request
waits for ninety-nine.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send


class ResourceRoutes:
    """Stands before the router. `routes` are of `/VERSION/RESOURCE[/…]`; what none of them takes is
    left to the router, which knows what to say: 404, 405, another path."""

    def __init__(self, router: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._router = router
        self._by_resource: dict[str, list[Route]] = {}
        for route in routes:
            if isinstance(route, Route):
                self._by_resource.setdefault(_resource_of(route.path), []).append(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] == "http" and not scope.get("root_path"):
            for route in self._by_resource.get(_resource_of(scope["path"]), ()):
                match, found = route.matches(scope)
                if match is Match.FULL:
                    scope.update(found)
                    await route.handle(scope, receive, send)
                    return
        await self._router(scope, receive, send)


def _resource_of(path: str) -> str:
    return "/".join(path.split("/", 3)[:3])
