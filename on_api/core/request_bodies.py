"""A request's body as it streams: in large blocks where the server can hand it over in these.

The server says so by `TAKE_BODY` in the scope, as `cli/http_protocol.py` does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from starlette.requests import Request

from on_api.core.blocks import Bytes, Room
from on_api.core.digests import SentDigests

TAKE_BODY = "on_api.take_body"
"""Where in the scope the function is that makes an iterator over the body's blocks; it is given the
room where they go."""

Block = TypeVar("Block", bound=Bytes)


def body_of(request: Request, room: Room) -> AsyncIterator[Bytes]:
    """The body, in blocks out of `room` or in smaller pieces. Raises `ClientDisconnect`, and
    `BadRequest` at the end of one that isn't what its sender's digest says."""
    take: Callable[[Room], AsyncIterator[Bytes]] | None = request.scope.get(TAKE_BODY)
    return checked_stream(request) if take is None else _checked(request, take(room))


def checked_stream(request: Request) -> AsyncIterator[bytes]:
    """The same as the framework hands it over."""
    return _checked(request, request.stream())


def _checked(request: Request, body: AsyncIterator[Block]) -> AsyncIterator[Block]:
    digests = SentDigests(request.scope["headers"])
    return digests.checked(body) if digests else body
