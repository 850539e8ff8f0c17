"""The IPFS node behind on-api, for administrators."""

from __future__ import annotations

from fastapi import APIRouter

from on_api.core.dependencies import Admin, ServicesDep
from on_api.core.errors import NodeTimeout, NodeUnavailable
from on_api.core.routing import ApiRoute, documented
from on_api.core.schemas.node import Node
from on_api.core.services.node import describe_node

router = APIRouter(prefix="/node", tags=["node"], route_class=ApiRoute)


@router.get("", responses=documented(NodeUnavailable, NodeTimeout))
async def get_node(_principal: Admin, services: ServicesDep) -> Node:
    """The node's identity, version, peers and store."""
    return Node.model_validate(await describe_node(services.node))
