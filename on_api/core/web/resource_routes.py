"""Finds the route of a request among those of its resource that are as deep, not among all of them.

Starlette matches one regular expression after the other: of a hundred routes the last one's request
waits for ninety-nine.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send


class ResourceRoutes:
    """Stands before the router. `routes` are of `/VERSION/RESOURCE[/…]`, a parameter one segment.
    What none of them takes is left to the router, which knows what to say: 404, 405, another
    path."""

    def __init__(self, router: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._router = router
        self._near: dict[tuple[str, int], list[Route]] = {}
        for route in routes:
            if isinstance(route, Route):
                self._near.setdefault(_place_of(route.path), []).append(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] == "http" and not scope.get("root_path"):
            for route in self._near.get(_place_of(scope["path"]), ()):
                match, found = route.matches(scope)
                if match is Match.FULL:
                    scope.update(found)
                    await route.handle(scope, receive, send)
                    return
        await self._router(scope, receive, send)


def _place_of(path: str) -> tuple[str, int]:
    """Version and resource, and how many segments there are."""
    segments = path.split("/")
    return "/".join(segments[:3]), len(segments)
