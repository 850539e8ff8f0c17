"""What the server asks of an application beside ASGI."""

from __future__ import annotations

from typing import Protocol

from starlette.responses import Response

from on_api.core.errors import OnApiError
from on_api.core.setting_groups import ConnectionSettings


class Served(Protocol):
    """An application that can be asked so."""

    @property
    def connection_limits(self) -> ConnectionSettings:
        """How many clients are served, and how long they are waited for."""

    def render_error(self, path: str, error: OnApiError) -> Response:
        """The answer to what is no request, for the path that it names."""
