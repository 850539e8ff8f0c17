"""The IPFS node behind on-api, for administrators."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool

from on_api.core.errors import NodeTimeout, NodeUnavailable
from on_api.core.schemas.node import Maintenance, NodeInfo
from on_api.core.services.upkeep.node import MaintenanceReport, describe_node, maintenance_report
from on_api.core.web.dependencies import Admin, ServicesDep
from on_api.core.web.routing import ApiRoute, documented

shared_router = APIRouter(prefix="/node", tags=["node"], route_class=ApiRoute)


@shared_router.get("", responses=documented(NodeUnavailable, NodeTimeout))
async def get_node(_principal: Admin, services: ServicesDep) -> NodeInfo:
    """Get the node's identity, version, peers and repo size, and the results of the last
    maintenance runs."""

    def look_up() -> MaintenanceReport:
        with services.database.session_scope(write=False) as session:
            return maintenance_report(session)

    report = await run_in_threadpool(look_up)
    described = await describe_node(services.node)
    return NodeInfo(
        **asdict(described),
        pins=await services.watch.pinned(),
        last_gc=Maintenance.model_validate(report.gc),
        last_fsck=Maintenance.model_validate(report.fsck),
    )
