"""HEAD for every route that answers GET, and redirects to paths without a trailing slash: both
differ from the framework's own."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from fastapi.routing import APIRoute
from starlette.responses import RedirectResponse
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadRoute(APIRoute):
    """A route that answers HEAD as it answers GET, without producing the body (RFC 9110, 9.3.2)."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See Starlette."""
        return super().matches({**scope, "method": "GET"} if self._stands_in(scope) else scope)

    @property
    def answered_methods(self) -> set[str]:
        """The methods that the route answers, including HEAD if it answers GET."""
        methods = set(self.methods or ())
        return methods | {"HEAD"} if "GET" in methods else methods

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See Starlette."""
        if scope["method"] in (self.methods or ()):
            await self.app(scope, receive, send)
            return
        if not self._stands_in(scope):
            await super().handle(scope, receive, send)  # raises the 405
            return

        async def send_head(message: Message) -> None:
            scope["method"] = "HEAD"  # the server looks at it when it frames the answer
            await send(message)
            if message["type"] == "http.response.start":
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                raise _HeadIsSent

        scope["method"] = "GET"
        try:
            await self.app(scope, receive, send_head)
        except _HeadIsSent:
            pass
        finally:
            scope["method"] = "HEAD"

    def _stands_in(self, scope: Scope) -> bool:
        if scope.get("method") != "HEAD":
            return False
        methods = self.methods or ()
        return "GET" in methods and "HEAD" not in methods


class _HeadIsSent(BaseException):
    """Stops an answer whose body is not sent. Error handlers don't see it (`BaseException`)."""


class SlashRedirect:
    """Redirects from a path with trailing slashes to the one without, if a route is there.

    The client's `Host` is not repeated: a cache would keep it for others. The location is at
    `public_url` if that is set, else a path on the origin of the request. `default` answers every
    other path.
    """

    def __init__(
        self, routes: Sequence[BaseRoute], public_url: str | None, default: ASGIApp
    ) -> None:
        self._routes = routes
        self._origin = public_url or ""
        self._default = default

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        path = scope["path"].rstrip("/")
        there = {**scope, "path": path}
        if path == scope["path"] or not any(
            route.matches(there)[0] is not Match.NONE for route in self._routes
        ):
            await self._default(scope, receive, send)
            return
        query = scope["query_string"].decode("latin-1")
        location = self._origin + quote(path) + (f"?{query}" if query else "")
        await RedirectResponse(location)(scope, receive, send)
