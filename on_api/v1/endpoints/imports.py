"""Imports: move what you keep somewhere else here, and get a report of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from on_api.core.errors import (
    BadCar,
    Conflict,
    Forbidden,
    InsufficientStorage,
    KeyLimitReached,
    NodeError,
    NodeTimeout,
    NodeUnavailable,
    NotFound,
    PayloadTooLarge,
    QuotaExceeded,
    RequestTimeout,
)
from on_api.core.models import Import as ImportRow
from on_api.core.providers.base import CAR
from on_api.core.schemas.common import Absent, Text
from on_api.core.schemas.imports import (
    Import,
    ImportCreate,
    ImportItem,
    ImportItemList,
    ImportList,
)
from on_api.core.services.accounts.access import Scope
from on_api.core.services.transfer.imports import (
    find_import,
    imports_of,
    items_of,
    standing_of,
    states_of,
)
from on_api.core.services.transfer.reports import REPORTS
from on_api.core.web.binary_bodies import CAR_BODY, binary_answer
from on_api.core.web.dependencies import (
    ImportId,
    ImportStatusQuery,
    ImportsWrite,
    PageQuery,
    ServicesDep,
    SessionDep,
    attempt_of,
)
from on_api.core.web.request_bodies import checked_stream
from on_api.core.web.routing import ApiRoute, documented
from on_api.core.web.upload_forms import announced_by_body, raw_media_type

shared_router = APIRouter(prefix="/imports", tags=["imports"], route_class=ApiRoute)
replaced_router = APIRouter(prefix="/imports", tags=["imports"], route_class=ApiRoute)

_REPORT: dict[int | str, dict[str, Any]] = {
    200: binary_answer("The report, which is streamed.", "application/json", "text/csv")
}


@shared_router.post("", status_code=202, responses=documented(Conflict, Forbidden))
def create_import(
    body: ImportCreate, principal: ImportsWrite, session: SessionDep, services: ServicesDep
) -> Import:
    """Create an import. The source's list is read at once; check the `preview` before you start the
    import.

    The items become your pins, with their names, metadata and dates from the source; files from
    another on-api stay files. Credentials are stored encrypted, and deleted once the list has been
    read. Content that is already stored is not transferred again.
    """
    request = body.as_request()
    if principal.limited and request.source.kind != CAR:
        raise Forbidden(
            "A key with limits can't import, because the amount of data is not known in advance."
        )
    row = services.imports.create(
        session,
        principal.user_id,
        request,
        key_id=principal.key_id,
        is_admin=principal.allows(Scope.ADMIN),
    )
    return Import.of(row, standing_of(session, row))


@replaced_router.get("")
def list_my_imports(principal: ImportsWrite, session: SessionDep, page: PageQuery) -> ImportList:
    """List your imports, newest first."""
    count, rows = imports_of(principal.user_id).by_time(session, page)
    states = states_of(session, principal.user_id, rows)
    return ImportList(count=count, items=[Import.of(row, states[row.id]) for row in rows])


@shared_router.get("/{import_id}", responses=documented(NotFound))
def get_one_import(import_id: ImportId, principal: ImportsWrite, session: SessionDep) -> Import:
    """Get one of your imports and its progress."""
    row = find_import(session, principal.user_id, import_id)
    return Import.of(row, standing_of(session, row))


@replaced_router.get("/{import_id}/items", responses=documented(NotFound))
def list_items_of_import(
    import_id: ImportId,
    principal: ImportsWrite,
    session: SessionDep,
    page: PageQuery,
    status: ImportStatusQuery = None,
) -> ImportItemList:
    """List the items of an import, in reverse order of the source's list."""
    listing = items_of(session, principal.user_id, import_id, status)
    count, rows = listing.by_time(session, page)
    return ImportItemList(count=count, items=[ImportItem.of(row) for row in rows])


@shared_router.get(
    "/{import_id}/report",
    response_class=Response,
    responses={**_REPORT, **documented(NotFound)},
)
def get_report_of_import(
    import_id: ImportId,
    principal: ImportsWrite,
    session: SessionDep,
    services: ServicesDep,
    format: Annotated[
        Literal["json", "csv"],
        Query(description="Format of the report: `json` or `csv`.", examples=["csv"]),
    ] = "json",
) -> Response:
    """Report every item with its size, blocks, duration and route, and a final sentence that says
    whether everything was imported and verified, or what was not."""
    find_import(session, principal.user_id, import_id)
    media_type, write = REPORTS[format]
    return StreamingResponse(
        write(services.database, principal.user_id, import_id),
        media_type=media_type,
        headers={
            "Content-Disposition": f'attachment; filename="import-{import_id}.{format}"',
            "Cache-Control": "no-store",
        },
    )


@shared_router.post("/{import_id}/start", status_code=202, responses=documented(NotFound, Conflict))
def start_import(
    import_id: ImportId, principal: ImportsWrite, session: SessionDep, services: ServicesDep
) -> Import:
    """Start an import, resume it after a pause, or retry the failed items of an import that has
    ended."""
    row = services.imports.start(session, principal.user_id, import_id)
    return Import.of(row, standing_of(session, row))


@shared_router.post("/{import_id}/pause", status_code=202, responses=documented(NotFound, Conflict))
def pause_import(
    import_id: ImportId, principal: ImportsWrite, session: SessionDep, services: ServicesDep
) -> Import:
    """Pause an import. Items in progress start over when it is resumed."""
    row = services.imports.pause(session, principal.user_id, import_id)
    return Import.of(row, standing_of(session, row))


@shared_router.post("/{import_id}/cancel", status_code=202, responses=documented(NotFound))
def cancel_import(
    import_id: ImportId, principal: ImportsWrite, session: SessionDep, services: ServicesDep
) -> Import:
    """Cancel an import. Items that were already imported are kept."""
    row = services.imports.cancel(session, principal.user_id, import_id)
    return Import.of(row, standing_of(session, row))


@shared_router.put(
    "/{import_id}/car",
    responses=documented(
        NotFound,
        Conflict,
        BadCar,
        QuotaExceeded,
        KeyLimitReached,
        RequestTimeout,
        PayloadTooLarge,
        NodeError,
        NodeUnavailable,
        NodeTimeout,
        InsufficientStorage,
    ),
    openapi_extra={"requestBody": CAR_BODY},
)
async def send_car(
    request: Request,
    import_id: ImportId,
    principal: ImportsWrite,
    services: ServicesDep,
    name: Annotated[
        Text | Absent,
        Query(
            max_length=255,
            description="The pin, if the CAR has a single root.",
            examples=["photos"],
        ),
    ] = None,
) -> Import:
    """Upload the CAR (version 1 or 2) for an import of kind `car`. It is streamed to the node, and
    every block is verified; the roots are pinned once all of their blocks are stored, and the
    import is then done."""
    raw_media_type(request.headers)
    announced = announced_by_body(request.headers, services.settings.files.max_size, None)
    body = checked_stream(request, services.settings.files.idle_timeout)
    attempt = attempt_of(request)
    if attempt is None:
        await services.cars.take(principal, import_id, body, announced, name=name)
    else:

        def render(session: SessionDep, row: ImportRow) -> bytes:
            return Import.of(row, standing_of(session, row)).model_dump_json().encode()

        await services.cars.take_once(
            principal, import_id, body, announced, attempt, render, name=name
        )

    def look() -> Import:
        with services.database.session_scope(write=False) as session:
            row = find_import(session, principal.user_id, import_id)
            return Import.of(row, standing_of(session, row))

    return await run_in_threadpool(look)


@shared_router.delete("/{import_id}", status_code=204, responses=documented(NotFound, Conflict))
def delete_import(
    import_id: ImportId, principal: ImportsWrite, session: SessionDep, services: ServicesDep
) -> None:
    """Delete an import and its report. Items that were already imported are kept."""
    services.imports.delete(session, principal.user_id, import_id)
