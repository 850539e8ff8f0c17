"""Middleware that keeps the rates of the API: an address's before any work for its request, a key's
as soon as the key is known. Pure ASGI."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from on_api.core.errors import RateLimited
from on_api.core.services.shared.rate_limits import RateLimits, Standing, headers_of

ADMIT_KEY = "on_api.admit_key"
"""Key in the scope of the function that counts a request for the id of its key. It raises
`RateLimited`; without limits there is none."""
NEVER_LIMITED = frozenset({"/healthz", "/readyz", "/metrics"})
"""Paths that watchers ask, as often as they like."""
_STATE = b"ratelimit"


class RequestLimits:
    """Refuses requests over a limit before their bodies are read, and tells in the other answers
    what is left. Stands only where there is a limit.

    `refuse` returns the 429 for a path.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: RateLimits,
        refuse: Callable[[str, RateLimited], ASGIApp],
    ) -> None:
        self._app = app
        self._limits = limits
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http" or scope["path"] in NEVER_LIMITED:
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        try:
            standings = self._limits.count_address(client[0] if client else None)
        except RateLimited as error:
            await self._refuse(scope["path"], error)(scope, receive, send)
            return

        def admit_key(key_id: uuid.UUID) -> None:
            standings.extend(self._limits.count_key(key_id))

        scope[ADMIT_KEY] = admit_key
        await self._app(scope, receive, _telling(standings, send))


def _telling(standings: list[Standing], send: Send) -> Send:
    """Wrap `send` so that an answer's head tells the standings. A refusal for the key tells its own
    already."""

    async def send_telling(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message["headers"])
            if not any(name.lower() == _STATE for name, _ in headers):
                headers += [
                    (name.lower().encode(), value.encode())
                    for name, value in headers_of(standings).items()
                ]
            message["headers"] = headers
        await send(message)

    return send_telling
