"""Version 1: one line a resource."""

from __future__ import annotations

from fastapi import APIRouter

from on_api.core.error_handlers import FAILURE
from on_api.core.openapi import ApiVersion
from on_api.v1.endpoints import (
    audit,
    auth,
    exports,
    files,
    identities,
    imports,
    keys,
    node,
    pins,
    shares,
    traffic,
    users,
)

router = APIRouter(prefix="/v1")
router.include_router(auth.router)
router.include_router(users.v1_only)
router.include_router(users.router)
router.include_router(identities.router)
router.include_router(exports.router)
router.include_router(keys.v1_only)
router.include_router(keys.router)
router.include_router(files.v1_only)
router.include_router(files.router)
router.include_router(shares.v1_only)
router.include_router(shares.router)
router.include_router(pins.router)
router.include_router(traffic.router)
router.include_router(imports.v1_only)
router.include_router(imports.router)
router.include_router(node.router)
router.include_router(audit.v1_only)

VERSION = ApiVersion(
    prefix="/v1",
    router=router,
    errors=FAILURE,
    description="Your own IPFS storage service. Lists answer `{count, items}`, errors "
    "`{error: {reason, details}}`.",
)
