"""Version 1: one line a resource."""

from __future__ import annotations

from fastapi import APIRouter

from on_api.core.web.error_handlers import FAILURE
from on_api.core.web.openapi import ApiVersion
from on_api.core.web.routing import add_flat
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
add_flat(router, auth.router)
add_flat(router, users.v1_only)
add_flat(router, users.router)
add_flat(router, identities.router)
add_flat(router, exports.router)
add_flat(router, keys.v1_only)
add_flat(router, keys.router)
add_flat(router, files.v1_only)
add_flat(router, files.router)
add_flat(router, shares.v1_only)
add_flat(router, shares.router)
add_flat(router, pins.router)
add_flat(router, traffic.router)
add_flat(router, imports.v1_only)
add_flat(router, imports.router)
add_flat(router, node.router)
add_flat(router, audit.v1_only)

VERSION = ApiVersion(
    prefix="/v1",
    router=router,
    errors=FAILURE,
    description="Your own IPFS storage service. Lists answer `{count, items}`, errors "
    "`{error: {reason, details}}`.",
)
