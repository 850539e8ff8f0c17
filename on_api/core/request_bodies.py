"""A request's body as it streams: in large blocks where the server can hand it over in these.

The server says so by `TAKE_BODY` in the scope, as `cli/http_protocol.py` does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from starlette.requests import Request

from on_api.core.blocks import Bytes, Room

TAKE_BODY = "on_api.take_body"
"""Where in the scope the function is that makes an iterator over the body's blocks; it is given the
room where they go."""


def body_of(request: Request, room: Room) -> AsyncIterator[Bytes]:
    """The body, in blocks out of `room` or in smaller pieces. Raises `ClientDisconnect`."""
    take: Callable[[Room], AsyncIterator[Bytes]] | None = request.scope.get(TAKE_BODY)
    return request.stream() if take is None else take(room)
