"""The application with its fast lanes: the server's `FastHttp` asks these first."""

from __future__ import annotations

from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from on_api.core.errors import OnApiError
from on_api.core.ipfs.gateway_client.connection import JOINED_BYTES
from on_api.core.server_settings import ConnectionSettings
from on_api.core.services.container import Services
from on_api.fast.eligible import EligibleRequest
from on_api.fast.memory import Memory
from on_api.fast.relay import Client, Relay
from on_api.main import Application
from on_api.public.gateway.app import Gateway


class FastApplication:
    """Application that answers eligible requests of the gateway from memory, or asks the node for
    them without a scope and a task; every other request goes to the wrapped application. Used on
    the event loop only."""

    def __init__(self, app: Application) -> None:
        self._app = app
        services: Services = app.state.services
        gateway: Gateway = app.state.gateway
        settings = services.settings.gateway
        self._memory = Memory(services, gateway.answers)
        self._relay = Relay(services, gateway, self._memory, partial(gateway.count, "GET"))
        # Answers that depend on the client or on a rate limit take the ordinary way.
        self._is_open = settings.policy != "closed" and not settings.rate_per_ip
        self._relays = self._is_open and not settings.connections_per_ip
        self._may_hand_over = settings.accel_min_bytes <= JOINED_BYTES

    @property
    def connection_limits(self) -> ConnectionSettings:
        """Implement `Served`."""
        return self._app.connection_limits

    def render_error(self, path: str, error: OnApiError) -> Response:
        """Implement `Served`."""
        return self._app.render_error(path, error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        await self._app(scope, receive, send)

    def answer_at_once(self, request: EligibleRequest) -> tuple[bytes, bytes] | None:
        """Return the head, without the line that ends it, and the body of an answer that memory
        alone can give, counted as sent; otherwise None."""
        return self._memory.answer(request) if self._is_open else None

    def ask_node(self, request: EligibleRequest, client: Client) -> bool:
        """Ask the node. The client gets an answer later, or is sent the ordinary way then. Return
        False if the request must take the ordinary way at once."""
        if not self._relays or (request.has_accel and self._may_hand_over):
            return False
        return self._relay.begin(request, client)
