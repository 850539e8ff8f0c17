"""Files: upload by streaming, list, change, delete, download."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from on_api.core.errors import (
    Conflict,
    ContentDamaged,
    EgressBudgetExceeded,
    InsufficientStorage,
    KeyLimitReached,
    NodeError,
    NodeTimeout,
    NodeUnavailable,
    NotFound,
    PassphraseNeeded,
    PayloadTooLarge,
    PreconditionFailed,
    QuotaExceeded,
    RangeNotSatisfiable,
    RequestTimeout,
    SecretUnavailable,
    TooManyRequests,
    WrongPassphrase,
)
from on_api.core.models import File as FileRow
from on_api.core.schemas.files import (
    FileChanging,
    FileList,
    FileUpdate,
    FileVisibility,
    StoredFile,
    StoredFiles,
)
from on_api.core.services.accounts.access import Principal
from on_api.core.services.accounts.idempotency import Answered, IdempotencyClaim
from on_api.core.services.accounts.keys import require_in_force
from on_api.core.services.accounts.scrypt_pool import Asker
from on_api.core.services.container import Services
from on_api.core.services.content.reservations import Announced
from on_api.core.services.files.files import FileFacts, change_file, delete_file, files_of, get_file
from on_api.core.services.files.visibility import find_change
from on_api.core.services.traffic.metering import Charge, Kind
from on_api.core.services.uploads.uploads import IncomingFile
from on_api.core.web.binary_bodies import (
    LOCATION,
    RAW_BODY,
    UNCHANGED_HEADERS,
    UPLOAD_FORM,
    binary_answer,
)
from on_api.core.web.dependencies import (
    ClientDep,
    FileId,
    FileQuery,
    FilesRead,
    FilesWrite,
    PageQuery,
    PassphraseDep,
    ServicesDep,
    SessionDep,
    UploadQuery,
    attempt_of,
)
from on_api.core.web.multipart import MultipartReader
from on_api.core.web.request_bodies import body_of
from on_api.core.web.responses import file_response, redirect_to_fallback
from on_api.core.web.routing import ApiRoute, documented, services_of
from on_api.core.web.upload_forms import (
    announced_by_body,
    announced_by_form,
    incoming_files,
    raw_media_type,
)

shared_router = APIRouter(prefix="/files", tags=["files"], route_class=ApiRoute)
replaced_router = APIRouter(prefix="/files", tags=["files"], route_class=ApiRoute)

_UPLOAD_ERRORS = documented(
    QuotaExceeded,
    KeyLimitReached,
    RequestTimeout,
    PayloadTooLarge,
    NodeError,
    NodeUnavailable,
    NodeTimeout,
    TooManyRequests,
    SecretUnavailable,
    InsufficientStorage,
)
_CONTENT_ERRORS = documented(
    PassphraseNeeded,
    WrongPassphrase,
    NotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
    TooManyRequests,
    EgressBudgetExceeded,
    NodeError,
    ContentDamaged,
    NodeUnavailable,
    NodeTimeout,
    SecretUnavailable,
)
_CONTENT_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: binary_answer("The content of the file, with its own media type."),
    206: binary_answer("The range requested with `Range`."),
    302: {
        "description": "The egress budget is exceeded, and the operator redirects downloads in"
        " this case.",
        "headers": LOCATION,
    },
    304: {
        "description": "The content has not changed (`If-None-Match`).",
        "headers": UNCHANGED_HEADERS,
    },
}


@shared_router.post(
    "",
    status_code=201,
    response_model=StoredFile | StoredFiles,
    responses=_UPLOAD_ERRORS,
    openapi_extra={"requestBody": UPLOAD_FORM},
)
async def upload_files(
    request: Request,
    principal: FilesWrite,
    options: UploadQuery,
) -> Response:
    """Upload one or more files as `multipart/form-data`, in form parts named `file`.

    The bytes are streamed to the IPFS node. For one file, the response is the file; for several, it
    is `{"items": […]}`, and either all of them are stored or none. Options can be form fields or
    query parameters; all options except `name` and `meta` must precede the file. A private file is
    encrypted (age v1) before it reaches the node: to you, to additional `recipients`, or with a
    passphrase.
    """
    services = services_of(request)
    announced = announced_by_form(request.headers)
    idle_timeout = services.settings.files.idle_timeout
    with body_of(request, services.buffer_pool, idle_timeout) as body:
        reader = MultipartReader(
            request.headers.get("content-type", ""),
            body,
            max_parts=services.settings.files.max_parts,
        )
        files = incoming_files(reader, options)
        return await _store(services, principal, files, announced, attempt_of(request))


@shared_router.put(
    "",
    status_code=201,
    response_model=StoredFile,
    responses=_UPLOAD_ERRORS,
    openapi_extra={"requestBody": RAW_BODY},
)
async def upload_file(
    request: Request,
    principal: FilesWrite,
    options: UploadQuery,
) -> Response:
    """Upload one file as the raw request body: `curl -T FILE 'URL/v1/files?name=NAME'`.

    The bytes are stored as received: forms and bodies with a Content-Encoding are rejected. If the
    request has a digest (`Content-Digest`, `Repr-Digest`, `Content-MD5`), it is compared with the
    received bytes.
    """
    services = services_of(request)
    media_type = raw_media_type(request.headers)
    idle_timeout = services.settings.files.idle_timeout
    with body_of(request, services.buffer_pool, idle_timeout) as body:
        file = options.describe_file(body, None, media_type)

        async def only_this() -> AsyncIterator[IncomingFile]:
            yield file

        max_size = services.settings.files.max_size
        announced = announced_by_body(request.headers, max_size, file.audience)
        return await _store(services, principal, only_this(), announced, attempt_of(request))


@replaced_router.get("")
def list_my_files(
    principal: FilesRead,
    session: SessionDep,
    services: ServicesDep,
    page: PageQuery,
    wanted: FileQuery,
) -> FileList:
    """List your files, newest first. To get the next page, set `before` to the `created_at` of the
    last file."""
    count, rows = files_of(session, principal.user_id, wanted).by_time(session, page)
    items = [StoredFile.of(row, services.settings.base_url) for row in rows]
    return FileList(count=count, items=items)


@shared_router.get("/{file_id}", response_model=StoredFile, responses=documented(NotFound))
async def get_one_file(file_id: FileId, principal: FilesRead, request: Request) -> Response:
    """Get one of your files."""
    services = services_of(request)
    answers, user_id = services.file_answers, principal.user_id
    body = answers.recall(user_id, str(file_id))
    if body is None:
        gateway = services.settings.base_url

        def render(facts: FileFacts) -> bytes:
            return StoredFile.of(facts, gateway).model_dump_json().encode()

        body = await run_in_threadpool(answers.look_up, user_id, file_id, render)
    return Response(body, media_type="application/json")


@shared_router.get("/{file_id}/visibility", responses=documented(NotFound))
def get_visibility(file_id: FileId, principal: FilesRead, session: SessionDep) -> FileVisibility:
    """Get the visibility of one of your files, and the progress of a change to it."""
    row = get_file(session, principal.user_id, file_id)
    return FileVisibility.of(row, find_change(session, file_id))


@shared_router.patch(
    "/{file_id}",
    responses={
        202: {
            "model": FileChanging,
            "description": "The change of `visibility` is in progress; all other changes are"
            " complete.",
        },
        **documented(NotFound, Conflict),
    },
)
def change_one_file(
    file_id: FileId,
    body: FileUpdate,
    response: Response,
    principal: FilesWrite,
    session: SessionDep,
    services: ServicesDep,
) -> FileChanging | StoredFile:
    """Change a file's name or metadata at once (metadata is replaced completely), and its
    visibility in a background job.

    The file keeps its ID and its share links. Its CID changes when the job is complete; the quota
    must have room for both copies until then. Making a public file private removes it from your
    node and from this gateway, but can't affect copies that others have made. A private file that
    the server can't decrypt (because of a passphrase, or `owner_access=false`) can't be made
    public.
    """
    changes = body.model_dump(exclude_unset=True)
    visibility = changes.pop("visibility", None)
    if changes or visibility is None:
        change_file(session, principal.user_id, file_id, changes)
    change = None
    if visibility is not None:
        change = services.visibility.ask(session, principal.user_id, file_id, visibility)
    row = get_file(session, principal.user_id, file_id)
    gateway = services.settings.base_url
    if change is None:
        return StoredFile.of(row, gateway)
    response.status_code = 202
    return FileChanging.with_change(row, gateway, change)


@shared_router.delete("/{file_id}", status_code=204, responses=documented(NotFound))
def delete_one_file(file_id: FileId, principal: FilesWrite, session: SessionDep) -> None:
    """Delete a file. Other users who store the same content keep it."""
    delete_file(session, principal.user_id, file_id)


@shared_router.head(
    "/{file_id}/content", response_class=Response, responses={**_CONTENT_ANSWERS, **_CONTENT_ERRORS}
)
@shared_router.get(
    "/{file_id}/content", response_class=Response, responses={**_CONTENT_ANSWERS, **_CONTENT_ERRORS}
)
async def get_content(
    file_id: FileId,
    request: Request,
    principal: FilesRead,
    services: ServicesDep,
    client: ClientDep,
    passphrase: PassphraseDep,
    download: Annotated[
        bool,
        Query(
            description="Tell the browser to save the file instead of showing it.", examples=[True]
        ),
    ] = False,
    raw: Annotated[
        bool,
        Query(
            description="For private files: return the encrypted age file as it is stored on the"
            " node, which the holder of the key can decrypt with `age`.",
            examples=[True],
        ),
    ] = False,
) -> Response:
    """Download a file. `Range`, `If-Range`, `If-None-Match` and `If-Match` are supported.

    A private file is decrypted while it is sent; a range request decrypts only the chunks it needs.
    A file that the server can't decrypt (`owner_access=false`) is returned as the encrypted age
    file.
    """

    def look_up() -> FileRow:
        with services.database.session_scope(write=False) as session:
            return get_file(session, principal.user_id, file_id)

    def look_again() -> None:
        with services.database.session_scope(write=False) as session:
            require_in_force(session, principal.key_id)

    # Not the request's session: it would stay open while the bytes stream.
    row = await run_in_threadpool(look_up)
    asker = Asker.user(principal.user_id, client.client)
    file = await services.reader.read(row, raw=raw, passphrase=passphrase, asker=asker)
    if passphrase is not None:
        await run_in_threadpool(look_again)  # its turn may have come late
    charge = Charge(
        Kind.CONTENT,
        row.user_id,
        key_id=principal.metered_key,
        file_id=row.id,
        cid=row.cid,
    )
    try:
        return await file_response(request, file, services.meter, charge, download=download)
    except EgressBudgetExceeded as error:
        if not error.redirectable or file.private:
            raise
        return redirect_to_fallback(services.settings.gateway, row.cid, row.name, download=download)


async def _store(
    services: Services,
    principal: Principal,
    files: AsyncIterator[IncomingFile],
    announced: Announced,
    attempt: IdempotencyClaim | Answered | None,
) -> Response:
    """Store an upload, once per Idempotency-Key where one was sent."""

    def render(rows: Sequence[FileFacts]) -> bytes:
        items = [StoredFile.of(row, services.settings.base_url) for row in rows]
        shown = items[0] if len(items) == 1 else StoredFiles(items=items)
        return shown.model_dump_json().encode()

    if attempt is None:
        rows = await services.uploads.store(principal, files, announced)
    else:
        rows = await services.uploads.store_once(principal, files, announced, attempt, render)
    return Response(render(rows), 201, media_type="application/json")
