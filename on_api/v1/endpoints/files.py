"""Files: upload by streaming, list, change, delete, download."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from on_api.core.dependencies import (
    AttemptDep,
    FileQuery,
    FilesRead,
    FilesWrite,
    PageQuery,
    ServicesDep,
    SessionDep,
    UploadQuery,
)
from on_api.core.errors import (
    BadRequest,
    InsufficientStorage,
    KeyLimitReached,
    NodeError,
    NodeTimeout,
    NodeUnavailable,
    NotFound,
    PayloadTooLarge,
    PreconditionFailed,
    QuotaExceeded,
    RangeNotSatisfiable,
    RequestTimeout,
    UnsupportedMediaType,
)
from on_api.core.models import File as FileRow
from on_api.core.multipart import MultipartReader
from on_api.core.responses import file_response
from on_api.core.routing import RAW_BODY, UPLOAD_FORM, ApiRoute, documented
from on_api.core.schemas.files import File, FileItems, FileList, FileUpdate
from on_api.core.services.access import Principal
from on_api.core.services.container import Services
from on_api.core.services.files import (
    change_file,
    delete_file,
    files_of,
    get_file,
)
from on_api.core.services.idempotency import Answered, Claim
from on_api.core.services.reservations import Announced
from on_api.core.services.sources import Source, source_of
from on_api.core.services.uploads import IncomingFile
from on_api.core.upload_forms import announced_by_body, announced_by_form, incoming_files

router = APIRouter(prefix="/files", tags=["files"], route_class=ApiRoute)
v1_only = APIRouter(prefix="/files", tags=["files"], route_class=ApiRoute)

_UPLOAD_ERRORS = documented(
    QuotaExceeded,
    KeyLimitReached,
    RequestTimeout,
    PayloadTooLarge,
    NodeError,
    NodeUnavailable,
    NodeTimeout,
    InsufficientStorage,
)
_CONTENT_ERRORS = documented(
    NotFound, PreconditionFailed, RangeNotSatisfiable, NodeError, NodeUnavailable, NodeTimeout
)
_CONTENT_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file's bytes.", "content": {"*/*": {}}},
    206: {"description": "The part asked for by `Range`.", "content": {"*/*": {}}},
    304: {"description": "You have it already (`If-None-Match`)."},
}


@router.post(
    "",
    status_code=201,
    responses={**_UPLOAD_ERRORS, **documented(UnsupportedMediaType)},
    openapi_extra={"requestBody": UPLOAD_FORM},
)
async def upload_files(
    request: Request,
    principal: FilesWrite,
    attempt: AttemptDep,
    options: UploadQuery,
    services: ServicesDep,
) -> File | FileItems:
    """Upload one or many files as `multipart/form-data`, in parts named `file`.

    The bytes stream to the IPFS node as they come. One part answers the file, several `{"items":
    […]}`: all of them are stored, or none. The options may be form fields or query parameters;
    `visibility` must come before the file.
    """
    reader = MultipartReader(
        request.headers.get("content-type", ""),
        request.stream(),
        max_parts=services.settings.files.max_parts,
    )
    announced = announced_by_form(request.headers)
    files = incoming_files(reader, options)
    return await _store(services, principal, files, announced, attempt)


@router.put("", status_code=201, responses=_UPLOAD_ERRORS, openapi_extra={"requestBody": RAW_BODY})
async def upload_file(
    request: Request,
    principal: FilesWrite,
    attempt: AttemptDep,
    options: UploadQuery,
    services: ServicesDep,
) -> File:
    """Upload one file as the raw body: `curl -T FILE 'URL/v1/files?name=NAME'`."""
    if "content-range" in request.headers:
        # As `curl -C - -T` sends: the rest of a file would pass for the whole (RFC 9110, 14.5).
        raise BadRequest("Content-Range: a part of a file can't be stored; send the whole.")
    file = options.describe_file(request.stream(), None, request.headers.get("content-type"))

    async def only_this() -> AsyncIterator[IncomingFile]:
        yield file

    announced = announced_by_body(request.headers, services.settings.files.max_size)
    stored = await _store(services, principal, only_this(), announced, attempt)
    return stored if isinstance(stored, File) else stored.items[0]


@v1_only.get("")
def list_my_files(
    principal: FilesRead,
    session: SessionDep,
    services: ServicesDep,
    page: PageQuery,
    wanted: FileQuery,
) -> FileList:
    """Your files, newest first. Repeat with `before` = the last one's `created_at` to see more."""
    count, rows = files_of(session, principal.user_id, wanted).by_time(session, page)
    items = [File.of(row, services.settings.visible_gateway_url) for row in rows]
    return FileList(count=count, items=items)


@router.get("/{file_id}", responses=documented(NotFound))
def get_one_file(
    file_id: uuid.UUID, principal: FilesRead, session: SessionDep, services: ServicesDep
) -> File:
    """One of your files."""
    row = get_file(session, principal.user_id, file_id)
    return File.of(row, services.settings.visible_gateway_url)


@router.patch("/{file_id}", responses=documented(NotFound))
def change_one_file(
    file_id: uuid.UUID,
    body: FileUpdate,
    principal: FilesWrite,
    session: SessionDep,
    services: ServicesDep,
) -> File:
    """Change a file's name or meta. Meta is replaced as a whole."""
    changes = body.model_dump(exclude_unset=True)
    row = change_file(session, principal.user_id, file_id, changes)
    return File.of(row, services.settings.visible_gateway_url)


@router.delete("/{file_id}", status_code=204, responses=documented(NotFound))
def delete_one_file(file_id: uuid.UUID, principal: FilesWrite, session: SessionDep) -> None:
    """Delete a file. Others who hold the same content keep it."""
    delete_file(session, principal.user_id, file_id)


@router.head("/{file_id}/content", responses={**_CONTENT_ANSWERS, **_CONTENT_ERRORS})
@router.get("/{file_id}/content", responses={**_CONTENT_ANSWERS, **_CONTENT_ERRORS})
async def get_content(
    file_id: uuid.UUID,
    request: Request,
    principal: FilesRead,
    services: ServicesDep,
    download: Annotated[
        bool, Query(description="Ask the browser to save it rather than show it.")
    ] = False,
) -> Response:
    """The file's bytes. `Range`, `If-Range`, `If-None-Match` and `If-Match` are honoured."""

    def look_up() -> Source:
        # Not the request's session: it would stay open while the bytes stream.
        with services.database.session_scope(write=False) as session:
            row = get_file(session, principal.user_id, file_id)
        return source_of(row, services.node)

    source = await run_in_threadpool(look_up)
    return file_response(request.headers, request.method, source, download=download)


async def _store(
    services: Services,
    principal: Principal,
    files: AsyncIterator[IncomingFile],
    announced: Announced,
    attempt: Claim | Answered | None,
) -> File | FileItems:
    """Store an upload, once per Idempotency-Key where one was sent."""

    def show(rows: Sequence[FileRow]) -> File | FileItems:
        items = [File.of(row, services.settings.visible_gateway_url) for row in rows]
        return items[0] if len(items) == 1 else FileItems(items=items)

    if attempt is None:
        return show(await services.uploads.store(principal, files, announced))
    return show(
        await services.uploads.store_once(
            principal, files, announced, attempt, lambda rows: show(rows).model_dump_json().encode()
        )
    )
