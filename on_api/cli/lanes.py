"""Choice of the application and the protocol that serve: with fast lanes or without. The one place
that knows both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from on_api.core.settings import Settings
from on_api.server.protocol import FramedHttp

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from on_api.main import Application


def chosen_lanes(settings: Settings, app: Application) -> tuple[ASGIApp, type[FramedHttp]]:
    """Return the application and the protocol for `build_server`. Requests that are traced go the
    ordinary way, where their spans are made."""
    if settings.fast_lanes and not settings.otel:
        from on_api.fast.application import FastApplication
        from on_api.fast.protocol import FastHttp

        return FastApplication(app), FastHttp
    return app, FramedHttp
