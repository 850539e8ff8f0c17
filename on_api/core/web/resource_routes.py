"""Finds the route of a request by its path, where that has no parameters, else among those of its
resource that are as deep and have its method.

Starlette matches one regular expression after the other: of a hundred routes the last one's request
waits for ninety-nine.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from on_api.core.web.head_requests import HeadRoute


class ResourceRoutes:
    """Stands before the router. `routes` are of `/VERSION/RESOURCE[/…]`, a parameter one segment.
    What none of them takes is left to the router, which knows what to say: 404, 405, another
    path."""

    def __init__(self, router: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._router = router
        self._fixed: dict[tuple[str, str], HeadRoute] = {}
        """By method and path."""
        self._near: dict[tuple[str, str, int], list[HeadRoute]] = {}
        """By method and place."""
        for route in routes:
            if isinstance(route, HeadRoute):
                for method in route.answered_methods:
                    if route.param_convertors:
                        place = method, *_place_of(route.path)
                        self._near.setdefault(place, []).append(route)
                    else:
                        self._fixed.setdefault((method, route.path), route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        route = self._find(scope)
        await (self._router if route is None else route.handle)(scope, receive, send)

    def _find(self, scope: Scope) -> HeadRoute | None:
        if scope["type"] != "http" or scope.get("root_path"):
            return None
        method, path = scope["method"], scope["path"]
        route = self._fixed.get((method, path))
        if route is not None:
            scope.update({"endpoint": route.endpoint, "path_params": {}, "route": route})
            return route
        for route in self._near.get((method, *_place_of(path)), ()):
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                return route
        return None


def _place_of(path: str) -> tuple[str, int]:
    """Version and resource, and how many segments there are."""
    segments = path.split("/")
    return "/".join(segments[:3]), len(segments)
