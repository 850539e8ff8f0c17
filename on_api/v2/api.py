"""Version 2, the whole truth of it: per resource v1's router, unchanged, or v2's own."""

from __future__ import annotations

from fastapi import APIRouter

from on_api.core.error_handlers import FAILURE, PROBLEM
from on_api.core.openapi import ApiVersion
from on_api.v1.endpoints.auth import router as auth
from on_api.v1.endpoints.exports import router as exports
from on_api.v1.endpoints.identities import router as identities
from on_api.v1.endpoints.node import router as node
from on_api.v1.endpoints.pins import router as pins
from on_api.v1.endpoints.traffic import router as traffic
from on_api.v2.endpoints.audit import router as audit
from on_api.v2.endpoints.files import router as files
from on_api.v2.endpoints.imports import router as imports
from on_api.v2.endpoints.keys import router as keys
from on_api.v2.endpoints.shares import router as shares
from on_api.v2.endpoints.users import router as users

router = APIRouter(prefix="/v2")
router.include_router(auth)
router.include_router(users)
router.include_router(identities)
router.include_router(exports)
router.include_router(keys)
router.include_router(files)
router.include_router(shares)
router.include_router(pins)
router.include_router(traffic)
router.include_router(imports)
router.include_router(node)
router.include_router(audit)

VERSION = ApiVersion(
    prefix="/v2",
    router=router,
    errors=PROBLEM,
    # The Pinning Service API is the same in every version, its errors too.
    foreign_errors={"/pins": FAILURE},
    description="Your own IPFS storage service. Lists answer `{items, next_cursor}`, errors are "
    "problem details (RFC 9457).",
)
