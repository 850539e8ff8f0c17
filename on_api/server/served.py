"""Interface that the server needs of an application beside ASGI."""

from __future__ import annotations

from typing import Protocol

from starlette.responses import Response

from on_api.core.errors import OnApiError
from on_api.core.server_settings import ConnectionSettings


class Served(Protocol):
    """An application that on-api's own server can serve."""

    @property
    def connection_limits(self) -> ConnectionSettings:
        """Limits: how many connections are served, and how long the server waits for them."""

    def render_error(self, path: str, error: OnApiError) -> Response:
        """Return the answer to input that is not a valid request, in the error format of `path`."""
