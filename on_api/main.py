"""The web application: `create_app` makes a FastAPI application from settings.

Serve it with `uvicorn --factory on_api.main:create_app`. Opens no connection and starts no thread
before its lifespan begins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version as release_of

from anyio import to_thread
from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from on_api.core.errors import OnApiError
from on_api.core.ipfs.port import IpfsNode
from on_api.core.logging import mask_foreign_access_log
from on_api.core.models.revisions import check_revision
from on_api.core.server_settings import ConnectionSettings
from on_api.core.services.accounts.rotation import secret_problem
from on_api.core.services.container import Services
from on_api.core.services.upkeep.siblings import Sibling
from on_api.core.settings import Settings
from on_api.core.web.error_handlers import ErrorHandlers
from on_api.core.web.head_requests import SlashRedirect
from on_api.core.web.middleware import (
    ErrorAnswers,
    InFlightLimit,
    Metering,
    RequestContext,
    RequestSlots,
)
from on_api.core.web.request_limits import RequestLimits
from on_api.core.web.resource_routes import ResourceRoutes
from on_api.core.web.routing import add_flat
from on_api.core.web.traced_requests import TracedRequests
from on_api.public import docs, health, shares
from on_api.public.gateway.app import Gateway
from on_api.public.gateway.request import is_gateway_path
from on_api.v1.api import VERSION as V1
from on_api.v2.api import VERSION as V2
from on_api.worker.housekeeping import Housekeeper
from on_api.worker.runner import Worker

logger = logging.getLogger(__name__)

VERSIONS = (V1, V2)
NEWS_SECONDS = 5.0
"""Seconds that a start waits at most until the process listens for cache invalidations."""


class Application(FastAPI):
    """FastAPI application that hands requests below the gateway's paths to `gateway`, past the
    framework, because they are the most frequent."""

    gateway: ASGIApp
    connection_limits: ConnectionSettings
    """Limits for on-api's own server: connections, and seconds to wait for their clients."""
    render_error: Callable[[str, OnApiError], Response]
    """Renderer for on-api's own server: answers input that is not a valid request, in the error
    format of the given path."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
        elif is_gateway_path(scope["path"]):
            await self.gateway(scope, receive, send)
        else:
            if self.middleware_stack is None:
                self.middleware_stack = self.build_middleware_stack()
            scope["app"] = self
            await self.middleware_stack(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Stack only the middleware added in `create_app`. FastAPI adds six layers around every
        request: for exceptions, telemetry, body size, files of forms and dependencies with `yield`;
        here `ErrorAnswers` and `ApiRoute` do that work."""
        app: ASGIApp = self.router
        for middleware, arguments, options in reversed(self.user_middleware):
            app = middleware(app, *arguments, **options)
        return app


def create_app(
    settings: Settings | None = None,
    node: IpfsNode | None = None,
    sibling: Sibling | None = None,
) -> Application:
    """Create the application. By default settings come from the environment, and `node` is the Kubo
    that they name. `sibling` is given if this is one of several processes at one address.

    The lifespan raises `StartupError` if the database is not at the revision that this code needs.
    Without the master secret, everything that does not need it works, and the log says so.
    """
    settings = settings or Settings()
    services = Services.build(settings, node)
    app = Application(
        title="on-api",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        # `metrics.py` and `tracing.py` do it: FastAPI would record queries, which may hold secrets.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.services = services
    app.state.sibling = sibling
    app.state.is_up = lambda: None
    gateway = Gateway(services)
    app.gateway = app.state.gateway = gateway
    tracing = services.tracing
    if tracing is not None:
        app.gateway = TracedRequests(gateway, tracing, route="/ipfs")

    handlers = ErrorHandlers(
        {prefix: form for version in VERSIONS for prefix, form in version.error_formats().items()}
        | {shares.PREFIX: shares.ERRORS}
    )
    app.render_error = handlers.refusal
    app.connection_limits = settings.connections
    if settings.trusted_proxies:  # every connection comes from one of them
        app.connection_limits = settings.connections.model_copy(update={"most_per_address": 0})
    slots = RequestSlots(settings.max_requests, services.metrics)
    app.add_middleware(ErrorAnswers, respond=handlers.respond)
    app.add_middleware(Metering)
    app.add_middleware(
        InFlightLimit,
        slots=slots,
        refuse=handlers.too_busy,
        metrics=services.metrics,
    )
    if services.api_limits.are_on:
        app.add_middleware(RequestLimits, limits=services.api_limits, refuse=handlers.answer)
    if settings.cors.origins:
        # Outside the limits: a browser's app must be able to read the 429, 500 and 503 too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors.origins,
            allow_credentials=settings.cors.credentials,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[
                "Content-Disposition",
                "Content-Location",
                "Content-Range",
                "ETag",
                "Idempotent-Replayed",
                "RateLimit",
                "RateLimit-Policy",
                "Retry-After",
                "X-Request-Id",
            ],
        )
    app.add_middleware(RequestContext, metrics=services.metrics)
    if tracing is not None:
        app.add_middleware(TracedRequests, tracing=tracing)
    if settings.trusted_proxies:
        believed = settings.trusted_proxies
        app.gateway = ProxyHeadersMiddleware(app.gateway, believed)  # type: ignore[arg-type,assignment]  # uvicorn has types of its own
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=settings.trusted_proxies)

    for version in VERSIONS:
        add_flat(app.router, version.router)
    add_flat(app.router, shares.router)
    # FastAPI's own kind of route, which is not used here, needs what this leaves in the scope.
    others = AsyncExitStackMiddleware(app.router.app)
    app.router.middleware_stack = ResourceRoutes(others, app.router.routes)
    add_flat(app.router, health.router)
    docs.install_docs(app, VERSIONS, release_of("on-api"))
    app.router.default = SlashRedirect(app.router.routes, settings.public_url, app.router.default)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    mask_foreign_access_log()
    threads = to_thread.current_default_thread_limiter()
    threads.total_tokens = services.settings.threads
    services.metrics.watch(
        "on_api_threads_waiting",
        "Tasks waiting for one of the ON_API_THREADS threads.",
        lambda: threads.statistics().tasks_waiting,
    )
    await to_thread.run_sync(_check_database, services)
    if services.tracing is not None:
        services.tracing.begin_export()
    sibling: Sibling | None = app.state.sibling
    keeps_house = sibling is None or sibling.is_first
    housekeeper = Housekeeper(services.database, services.invalidations, services.settings.traffic)
    services.invalidations.start()
    await to_thread.run_sync(services.invalidations.wait, NEWS_SECONDS)
    services.presence.start()
    background = [
        asyncio.create_task(services.watch.run()),
        asyncio.create_task(services.meter.run()),
    ]
    if sibling is not None:
        background.append(asyncio.create_task(sibling.run(services.metrics.exposition)))
    worker = Worker(services) if services.settings.worker.embedded and keeps_house else None
    if keeps_house:
        housekeeper.start()
    if worker is not None:
        worker.start()
    app.state.is_up()
    try:
        yield
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await services.meter.close()
        if worker is not None:
            await worker.stop()
        if keeps_house:
            await to_thread.run_sync(housekeeper.stop)
        await to_thread.run_sync(services.presence.stop)
        await to_thread.run_sync(services.invalidations.stop)
        await services.close()
        if services.tracing is not None:
            await to_thread.run_sync(services.tracing.close)


def _check_database(services: Services) -> None:
    with services.database.session_scope(write=False) as session:
        check_revision(session.connection())
        problem = secret_problem(session, services.keyring)
    if problem is not None:
        services.keyring.warning = problem
        logger.error("the master secret can't be used: %s", problem)
