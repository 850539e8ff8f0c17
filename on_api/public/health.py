"""Liveness (`/healthz`, which depends on nothing else), readiness (`/readyz`) and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from on_api.core.metrics import CONTENT_TYPE
from on_api.core.schemas.node import Check, Health, Readiness
from on_api.core.services.upkeep.siblings import Sibling
from on_api.core.web.dependencies import ServicesDep
from on_api.core.web.routing import ApiRoute

router = APIRouter(tags=["health"], route_class=ApiRoute)


@router.get("/healthz")
async def get_health() -> Health:
    """The process lives."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Readiness, "description": "Not all are well."}})
async def get_readiness(services: ServicesDep, response: Response) -> Readiness:
    """Each thing that the service needs, within two seconds whatever hangs; 503 unless all that are
    needed are well. A full node (`room`) and news of other processes that isn't heard (`news`) are
    told and make no 503: what is stored is still served."""
    checks = await services.readiness.checks()
    ready = all(check.ok for check in checks if check.needed)
    response.status_code = 200 if ready else 503
    return Readiness(ready=ready, checks=[Check.model_validate(check) for check in checks])


@router.get("/metrics", response_class=PlainTextResponse)
async def get_metrics(services: ServicesDep, request: Request) -> Response:
    """Metrics for Prometheus, without names and content; a proxy should keep them inside all the
    same."""
    text = services.metrics.exposition()
    sibling: Sibling | None = request.app.state.sibling
    if sibling is not None:
        text = await services.strangers.in_thread(sibling.joined, text)
    return Response(text, media_type=CONTENT_TYPE)
