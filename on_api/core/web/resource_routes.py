"""Fast lookup of a request's route: by its path, if that has no parameters, else among the routes
of its resource with as many segments and the same method.

Starlette matches one regular expression after the other: with a hundred routes a request for the
last one waits for ninety-nine.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from on_api.core.web.head_requests import HeadRoute


class ResourceRoutes:
    """Lookup in front of the router. `routes` have paths `/VERSION/RESOURCE[/…]`, a parameter being
    one segment. A request that none of them matches goes to the router, which answers 404 or 405,
    or has a route for a path of another kind."""

    def __init__(self, router: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._router = router
        self._fixed: dict[tuple[str, str], HeadRoute] = {}
        """Routes without parameters, by method and path."""
        self._near: dict[tuple[str, str, int], list[HeadRoute]] = {}
        """Routes with parameters, by method and `_bucket_of` their path."""
        for route in routes:
            if isinstance(route, HeadRoute):
                for method in route.answered_methods:
                    if route.param_convertors:
                        bucket = method, *_bucket_of(route.path)
                        self._near.setdefault(bucket, []).append(route)
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
        for route in self._near.get((method, *_bucket_of(path)), ()):
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                return route
        return None


def _bucket_of(path: str) -> tuple[str, int]:
    """Return version and resource, and the number of segments."""
    segments = path.split("/")
    return "/".join(segments[:3]), len(segments)
