"""The way out: everything that you keep here, to take elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from on_api.core.errors import (
    EgressBudgetExceeded,
    NodeError,
    NodeTimeout,
    NodeTruncated,
    NodeUnavailable,
)
from on_api.core.services.accounts import audit
from on_api.core.services.traffic.metering import Charge, Kind
from on_api.core.services.transfer.exports import CAR_TYPE, metadata, open_car, pins_list
from on_api.core.web.binary_bodies import binary_answer, header
from on_api.core.web.dependencies import ClientDep, ExportRead, ServicesDep, act_as
from on_api.core.web.responses import CONTENT_SANDBOX, ContentResponse, have_counted
from on_api.core.web.routing import ApiRoute, documented

shared_router = APIRouter(prefix="/users/me/export", tags=["users"], route_class=ApiRoute)

_EXPORT: dict[int | str, dict[str, Any]] = {
    200: binary_answer(
        "The export, which is streamed.", "application/vnd.ipld.car", "text/csv", "application/json"
    )
}
_EXPORT[200]["headers"] = {
    **_EXPORT[200]["headers"],
    "X-Ipfs-Roots": header(
        "For a CAR: its root.", "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
    ),
}
_ERRORS = (EgressBudgetExceeded, NodeError, NodeTruncated, NodeUnavailable, NodeTimeout)
_NAMES = {"car": "export.car", "pins": "pins.csv", "json": "export.json"}


@shared_router.get(
    "",
    response_class=Response,
    responses={**_EXPORT, **documented(*_ERRORS)},
)
async def export_everything(
    request: Request,
    principal: ExportRead,
    services: ServicesDep,
    client: ClientDep,
    format: Annotated[
        Literal["car", "pins", "json"],
        Query(
            description="`car`: all content as one CAR, in one directory; private files stay"
            " encrypted."
            " `pins`: CSV of CIDs and names, which an import of kind `cids` accepts. `json`:"
            " files, pins and links with all their metadata, without secrets.",
            examples=["pins"],
        ),
    ] = "car",
) -> Response:
    """Export everything that you store. If a CAR can't be completed, the connection is closed
    early, so that clients notice it."""

    def note() -> None:
        with services.database.session_scope() as session:
            actor = act_as(principal, client)
            audit.record(session, actor, "export", "user", principal.user_id, format=format)

    charge = Charge(Kind.EXPORT, principal.user_id, key_id=principal.metered_key)
    await run_in_threadpool(note)
    headers = {
        "Cache-Control": "private, no-store",
        "Content-Disposition": f'attachment; filename="{_NAMES[format]}"',
        "Content-Security-Policy": CONTENT_SANDBOX,
        "X-Content-Type-Options": "nosniff",
    }
    if format != "car":
        write = pins_list if format == "pins" else metadata
        media_type = "text/csv; charset=utf-8" if format == "pins" else "application/json"
        await have_counted(request, services.meter, charge, None)
        pieces = write(services.database, principal.user_id)
        return StreamingResponse(pieces, media_type=media_type, headers=headers)
    export = await open_car(services.database, services.node, principal.user_id)
    # What can't be sent to its end is better refused than cut.
    await have_counted(request, services.meter, charge, export.size)

    @asynccontextmanager
    async def body() -> AsyncIterator[AsyncIterator[bytes]]:
        yield export.chunks()

    headers |= {"Content-Type": CAR_TYPE, "X-Ipfs-Roots": export.root}
    return ContentResponse(body, 200, headers)
