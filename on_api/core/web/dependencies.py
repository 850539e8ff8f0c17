"""Every dependency as an `Annotated` alias: what a handler needs, and what its caller must be
allowed, is in its signature."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Query, Request, Response, Security
from fastapi.security import OAuth2PasswordBearer, SecurityScopes
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from on_api.core.errors import BadRequest, Unauthorized
from on_api.core.models.user import CLIENT_LENGTH
from on_api.core.pagination import (
    DEFAULT_LIMIT,
    MAX_CURSOR_LENGTH,
    MAX_LIMIT,
    CursorPage,
    Position,
    TimePage,
)
from on_api.core.schemas.common import Absent, GivenMoment, Text
from on_api.core.schemas.files import Visibility
from on_api.core.schemas.imports import ItemStatus
from on_api.core.services.accounts.access import SCOPE_DESCRIPTIONS, Principal, Scope
from on_api.core.services.accounts.audit import Actor
from on_api.core.services.accounts.idempotency import AlreadyAnswered, Answered, IdempotencyClaim
from on_api.core.services.container import Services
from on_api.core.services.files.files import FileFilter
from on_api.core.web.inputs import query_of
from on_api.core.web.request_limits import ADMIT_KEY
from on_api.core.web.routing import (
    ATTEMPT,
    BODY_DIGEST,
    CLAIMING,
    ApiRoute,
    ChecksQuery,
    Transaction,
    services_of,
)
from on_api.core.web.upload_forms import (
    PASSPHRASE_HEADER,
    UploadOptions,
    check_option,
    check_passphrase,
)


async def get_services(request: Request) -> Services:
    """The process's services."""
    return services_of(request)


ServicesDep = Annotated[Services, Depends(get_services)]


def _id_of(thing: str) -> Any:
    return Path(
        description=f"The `id` of {thing}.", examples=["0190f3b2-7a51-7c4e-9d2f-3b6c8a1e5d47"]
    )


UserId = Annotated[uuid.UUID, _id_of("an account")]
KeyId = Annotated[uuid.UUID, _id_of("one of your keys")]
FileId = Annotated[uuid.UUID, _id_of("one of your files")]
ShareId = Annotated[uuid.UUID, _id_of("one of your links")]
ImportId = Annotated[uuid.UUID, _id_of("one of your imports")]


async def get_transaction(
    request: Request, response: Response, services: ServicesDep
) -> Transaction:
    """One transaction for the request: a read-only snapshot for GET, else a writer.

    Not open yet: `ApiRoute` opens it around the endpoint, in the endpoint's thread, so that it has
    committed before there is an answer.
    """
    return Transaction(request, response, services.database, services.idempotency)


SessionDep = Annotated[Session, Depends(get_transaction)]
"""Parameter named `session`: `ApiRoute` opens the transaction around the endpoint."""

TransactionDep = Annotated[Transaction, Depends(get_transaction)]
"""Transaction for an endpoint that has slow work to do before, and runs it itself."""


def bearer_key(authorization: str) -> str | None:
    """The key that a header carries."""
    kind, _, key = authorization.partition(" ")
    return key.strip() if kind.lower() == "bearer" and key else None


_SCOPES = {scope.value: scope for scope in Scope}


class _PrincipalOfKey(OAuth2PasswordBearer, ChecksQuery):
    """The caller of a valid key that has the scopes. One dependency: the framework documents it as
    a password login, and `openapi.py` adds a field for a key (`KEY_SCHEME`)."""

    async def __call__(  # type: ignore[override]  # a principal is no token
        self, request: Request, scopes: SecurityScopes
    ) -> Principal:
        """Uses no session of the request: it may stream for hours. Raises `Unauthorized`,
        `RateLimited` or `Forbidden`."""
        key = bearer_key(request.headers.get("authorization", ""))
        if key is None:
            raise Unauthorized
        services = services_of(request)
        admit = request.scope.get(ADMIT_KEY)
        principal = await services.key_lookups.principal_of(key, admit)
        principal.require(*map(_SCOPES.__getitem__, scopes.scopes))
        route = request.scope.get("route")
        if isinstance(route, ApiRoute):
            route.check_query(request)  # before any work for the caller
        if request.method in CLAIMING and "idempotency-key" in request.headers:
            await run_in_threadpool(_claim_idempotency_key, request, services, principal)
        return principal


get_principal = _PrincipalOfKey(
    "/v1/auth/token",
    scheme_name="Password",
    scopes=SCOPE_DESCRIPTIONS,
    description="Log in with username and password; the token expires after an hour.",
)


def _claim_idempotency_key(request: Request, services: Services, principal: Principal) -> None:
    """Claim the request's Idempotency-Key, before its body where that is streamed.

    `ATTEMPT` in the scope is what came of it; a repeat whose body was read already ends here.
    """
    key, *others = request.headers.getlist("idempotency-key")
    if others:
        raise BadRequest("Idempotency-Key: must not be sent more than once.")
    route = f"{request.method} {request.url.path}"
    attempt = services.idempotency.claim(principal, route, key)
    body_digest = request.scope.get(BODY_DIGEST)
    if body_digest is not None and isinstance(attempt, Answered):
        raise AlreadyAnswered(attempt.for_repeat(body_digest.digest()))
    request.scope[ATTEMPT] = attempt


def attempt_of(request: Request) -> IdempotencyClaim | Answered | None:
    """Return what came of the request's Idempotency-Key, for an endpoint that streams its body."""
    attempt: IdempotencyClaim | Answered | None = request.scope.get(ATTEMPT)
    return attempt


def _needs(*scopes: Scope) -> Any:
    return Security(get_principal, scopes=[scope.value for scope in scopes])


CurrentUser = Annotated[Principal, _needs()]
FilesRead = Annotated[Principal, _needs(Scope.FILES_READ)]
FilesWrite = Annotated[Principal, _needs(Scope.FILES_WRITE)]
PinsRead = Annotated[Principal, _needs(Scope.PINS_READ)]
PinsWrite = Annotated[Principal, _needs(Scope.PINS_WRITE)]
SharesWrite = Annotated[Principal, _needs(Scope.SHARES_WRITE)]
ImportsWrite = Annotated[Principal, _needs(Scope.IMPORTS_WRITE)]
KeysWrite = Annotated[Principal, _needs(Scope.KEYS_WRITE)]
TrafficRead = Annotated[Principal, _needs(Scope.TRAFFIC_READ)]
ExportRead = Annotated[Principal, _needs(Scope.FILES_READ, Scope.PINS_READ)]
Admin = Annotated[Principal, _needs(Scope.ADMIN)]


async def get_client(request: Request) -> Actor:
    """An actor of whom only the address is known. It may be any text: a proxy that is believed
    may pass on what it was told."""
    return Actor(client=request.client.host[:CLIENT_LENGTH] if request.client else None)


ClientDep = Annotated[Actor, Depends(get_client)]


def act_as(principal: Principal, client: Actor) -> Actor:
    """Return the actor to name in the audit log."""
    return Actor(principal.user_id, principal.key_id, client.client)


async def get_page(
    limit: Annotated[
        int,
        Query(
            ge=1,
            le=MAX_LIMIT,
            description=f"Maximum number of items to return, at most {MAX_LIMIT}.",
            examples=[20],
        ),
    ] = DEFAULT_LIMIT,
    before: Annotated[
        GivenMoment | Absent, Query(description="Return only items created before this time.")
    ] = None,
    after: Annotated[
        GivenMoment | Absent, Query(description="Return only items created after this time.")
    ] = None,
) -> TimePage:
    """v1's page of a list."""
    return TimePage(limit=limit, before=before, after=after)


PageQuery = Annotated[TimePage, Depends(get_page)]


class Cursors:
    """v2's page of a list, and the cursor of the next one."""

    def __init__(
        self,
        request: Request,
        services: ServicesDep,
        limit: Annotated[
            int,
            Query(
                ge=1,
                le=MAX_LIMIT,
                description=f"Maximum number of items to return, at most {MAX_LIMIT}.",
                examples=[20],
            ),
        ] = DEFAULT_LIMIT,
        cursor: Annotated[
            str | Absent,
            Query(
                max_length=MAX_CURSOR_LENGTH,
                description="The value of `next_cursor` from the previous page.",
                examples=["WyIyMDI2LTExLTIzIiw3XQ"],
            ),
        ] = None,
    ) -> None:
        self._signer = services.cursors
        # Another path or filter is another list, to which the cursor doesn't belong.
        others = [pair for pair in query_of(request.scope) if pair[0] not in _PAGING]
        self._scope = repr((request.url.path, sorted(others)))
        behind = None if cursor is None else self._signer.read(cursor, self._scope)
        self.page = CursorPage(limit, behind)

    def next(self, behind: Position | None) -> str | None:
        """The cursor of the page behind a position; None at the end."""
        return None if behind is None else self._signer.write(behind, self._scope)


_PAGING = {"limit", "cursor"}

CursorQuery = Annotated[Cursors, Depends()]


async def get_upload_options(
    request: Request,
    name: Annotated[
        str | Absent, Query(description="Name of the file.", examples=["地図.pdf"])
    ] = None,
    visibility: Annotated[
        str | Absent, Query(description="Visibility: `public` or `private`.", examples=["private"])
    ] = None,
    meta: Annotated[
        str | Absent,
        Query(description="Metadata as a JSON object.", examples=['{"project": "atlas"}']),
    ] = None,
    recipients: Annotated[
        list[str] | Absent,
        Query(
            description="For private files: additional recipients who can decrypt the file, as"
            " `age1…` keys, repeated or comma-separated.",
            examples=[["age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"]],
        ),
    ] = None,
    owner_access: Annotated[
        str | Absent,
        Query(
            description="`false`: encrypt a private file to its `recipients` only, so that not"
            " even the server can decrypt it.",
            examples=["false"],
        ),
    ] = None,
    passphrase: Annotated[
        str | Absent,
        Header(
            alias=PASSPHRASE_HEADER,
            description="Encrypt a private file with this passphrase (8 to 256 characters, UTF-8)"
            " instead"
            " of keys. The server does not store it: without the passphrase, the file is lost.",
            examples=["correct horse battery staple"],
        ),
    ] = None,
    exposed: Annotated[str | Absent, Query(alias="passphrase", include_in_schema=False)] = None,
) -> UploadOptions:
    """An upload's options from the query; form fields may add to them."""
    if exposed is not None:
        check_option("passphrase", "")  # says where it belongs
    options = UploadOptions(
        services_of(request).settings.files.default_visibility,
        check_passphrase(passphrase, new=True),
    )
    given = [("name", name), ("visibility", visibility), ("meta", meta)]
    given += [("recipients", text) for text in recipients or ()] + [("owner_access", owner_access)]
    for field, value in given:
        if value is not None:
            options.set(field, value)
    return options


UploadQuery = Annotated[UploadOptions, Depends(get_upload_options)]


async def get_passphrase(
    passphrase: Annotated[
        str | Absent,
        Header(
            alias=PASSPHRASE_HEADER,
            description="Passphrase of a private file that is encrypted with one (UTF-8).",
            examples=["correct horse battery staple"],
        ),
    ] = None,
) -> str | None:
    """The passphrase to open a file with."""
    return check_passphrase(passphrase, new=False)


PassphraseDep = Annotated[str | None, Depends(get_passphrase)]


async def get_file_filter(
    name: Annotated[
        Text | Absent,
        Query(
            max_length=255,
            description="Return only files with exactly this name.",
            examples=["map.pdf"],
        ),
    ] = None,
    name_contains: Annotated[
        Text | Absent,
        Query(
            max_length=255,
            description="Return only files whose name contains this text; not case-sensitive.",
            examples=["map"],
        ),
    ] = None,
    cid: Annotated[
        str | Absent,
        Query(
            max_length=128,
            description="Return only files with this CID.",
            examples=["bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"],
        ),
    ] = None,
    media_type: Annotated[
        Text | Absent,
        Query(
            max_length=255,
            description="Return only files with exactly this media type.",
            examples=["application/pdf"],
        ),
    ] = None,
    visibility: Annotated[
        Visibility | Absent,
        Query(description="Return only files with this visibility.", examples=["private"]),
    ] = None,
    meta: Annotated[
        str | Absent,
        Query(
            description="Return only files whose metadata contains this JSON object.",
            examples=['{"project": "atlas"}'],
        ),
    ] = None,
) -> FileFilter:
    """Filter of a list of files."""
    contained = None if meta is None else check_option("meta", meta)
    return FileFilter(name, name_contains, cid, media_type, visibility, contained)


FileQuery = Annotated[FileFilter, Depends(get_file_filter)]

SharedFileQuery = Annotated[
    uuid.UUID | Absent,
    Query(
        description="Return only links to this file.",
        examples=["0190f3b2-7a51-7c4e-9d2f-3b6c8a1e5d47"],
    ),
]

ImportStatusQuery = Annotated[
    ItemStatus | Absent,
    Query(description="Return only items with this status.", examples=["failed"]),
]
