"""Version 2, the whole truth of it: per resource v1's router, unchanged, or v2's own."""

from __future__ import annotations

from fastapi import APIRouter

from on_api.core.web.error_handlers import FAILURE, PROBLEM
from on_api.core.web.openapi import ApiVersion
from on_api.core.web.routing import add_flat
from on_api.v1.endpoints.auth import shared_router as auth
from on_api.v1.endpoints.exports import shared_router as exports
from on_api.v1.endpoints.identities import shared_router as identities
from on_api.v1.endpoints.node import shared_router as node
from on_api.v1.endpoints.pins import shared_router as pins
from on_api.v1.endpoints.traffic import shared_router as traffic
from on_api.v2.endpoints.audit import router as audit
from on_api.v2.endpoints.files import router as files
from on_api.v2.endpoints.imports import router as imports
from on_api.v2.endpoints.keys import router as keys
from on_api.v2.endpoints.shares import router as shares
from on_api.v2.endpoints.users import router as users

router = APIRouter(prefix="/v2")
add_flat(router, auth)
add_flat(router, users)
add_flat(router, identities)
add_flat(router, exports)
add_flat(router, keys)
add_flat(router, files)
add_flat(router, shares)
add_flat(router, pins)
add_flat(router, traffic)
add_flat(router, imports)
add_flat(router, node)
add_flat(router, audit)

VERSION = ApiVersion(
    prefix="/v2",
    router=router,
    errors=PROBLEM,
    # The Pinning Service API is the same in every version, its errors too.
    foreign_errors={"/pins": FAILURE},
    description="Your own IPFS storage service. Lists have the form `{items, next_cursor}`, and"
    " errors are problem details (RFC 9457).",
)
