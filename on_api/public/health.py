"""Liveness (`/healthz`, which depends on nothing else), readiness (`/readyz`) and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from on_api.core.metrics import CONTENT_TYPE, as_text
from on_api.core.schemas.node import Check, Health, Readiness
from on_api.core.services.upkeep.siblings import Sibling
from on_api.core.web.dependencies import ServicesDep
from on_api.core.web.routing import ApiRoute

router = APIRouter(tags=["health"], route_class=ApiRoute)


@router.get("/healthz")
async def get_health() -> Health:
    """Check that the process is alive."""
    return Health(status="ok")


@router.get(
    "/readyz",
    responses={
        503: {"model": Readiness, "description": "At least one required component does not work."}
    },
)
async def get_readiness(services: ServicesDep, response: Response) -> Readiness:
    """Check each component that the service needs. The response takes at most two seconds, even if
    a component hangs; the status is 503 unless all required components work. A full node (`room`),
    or missing notifications from other processes (`news`), is reported without a 503, because
    stored content can still be served."""
    checks = await services.readiness.checks()
    ready = all(check.ok for check in checks if check.needed)
    response.status_code = 200 if ready else 503
    return Readiness(ready=ready, checks=[Check.model_validate(check) for check in checks])


@router.get("/metrics", response_class=PlainTextResponse)
async def get_metrics(services: ServicesDep, request: Request) -> Response:
    """Metrics for Prometheus. They contain no names and no content, but a proxy should keep them
    internal."""
    figures = as_text(await services.figures.read())
    text = services.metrics.exposition()
    sibling: Sibling | None = request.app.state.sibling
    if sibling is not None:
        text = await services.strangers.in_thread(sibling.joined, text)
    return Response(text + figures, media_type=CONTENT_TYPE)
