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
add_flat(router, auth.shared_router)
add_flat(router, users.replaced_router)
add_flat(router, users.shared_router)
add_flat(router, identities.shared_router)
add_flat(router, exports.shared_router)
add_flat(router, keys.replaced_router)
add_flat(router, keys.shared_router)
add_flat(router, files.replaced_router)
add_flat(router, files.shared_router)
add_flat(router, shares.replaced_router)
add_flat(router, shares.shared_router)
add_flat(router, pins.shared_router)
add_flat(router, traffic.shared_router)
add_flat(router, imports.replaced_router)
add_flat(router, imports.shared_router)
add_flat(router, node.shared_router)
add_flat(router, audit.replaced_router)

VERSION = ApiVersion(
    prefix="/v1",
    router=router,
    errors=FAILURE,
    description="Your own IPFS storage service. Lists have the form `{count, items}`, and errors"
    " the form `{error: {reason, details}}`.",
)
