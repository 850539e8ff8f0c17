"""The application with its fast lanes beside it: what the server's `FastHttp` asks first."""

from __future__ import annotations

from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from on_api.core.errors import OnApiError
from on_api.core.ipfs.gateway_client.connection import JOINED_BYTES
from on_api.core.services.container import Services
from on_api.core.setting_groups import ConnectionSettings
from on_api.fast.memory import Memory
from on_api.fast.relay import Client, Relay
from on_api.fast.usual import UsualRequest
from on_api.main import Application
from on_api.public.gateway.app import Gateway


class FastApplication:
    """Answers usual requests of the gateway out of memory, or has the node asked for them without a
    scope and a task; hands every other to the application. On the event loop only."""

    def __init__(self, app: Application) -> None:
        self._app = app
        services: Services = app.state.services
        gateway: Gateway = app.state.gateway
        settings = services.settings.gateway
        self._memory = Memory(services, gateway.answers)
        self._relay = Relay(services, gateway, self._memory, partial(gateway.count, "GET"))
        # What depends on who asks, and how often they may, takes the ordinary way.
        self._is_open = settings.policy != "closed" and not settings.rate_per_ip
        self._relays = self._is_open and not settings.connections_per_ip
        self._may_hand_over = settings.accel_min_bytes <= JOINED_BYTES

    @property
    def connection_limits(self) -> ConnectionSettings:
        """See `Served`."""
        return self._app.connection_limits

    def render_error(self, path: str, error: OnApiError) -> Response:
        """See `Served`."""
        return self._app.render_error(path, error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        await self._app(scope, receive, send)

    def answer_at_once(self, request: UsualRequest) -> tuple[bytes, bytes] | None:
        """The answer to a request where memory alone can give it: its head, but for the line that
        ends it, and its body. It is counted as sent."""
        return self._memory.answer(request) if self._is_open else None

    def ask_node(self, request: UsualRequest, client: Client) -> bool:
        """Ask the node for what is wanted. The client gets an answer later, or goes the ordinary
        way. False: it goes that at once."""
        if not self._relays or (request.has_accel and self._may_hand_over):
            return False
        return self._relay.begin(request, client)
