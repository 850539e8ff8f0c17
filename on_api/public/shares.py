"""`/s/{token}`: a shared file for everyone who has the link. A browser gets a page with a button,
other programs the bytes.

No answer holds the token: it is not redirected to, not linked, and not sent to other sites.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any

from anyio import CancelScope
from fastapi import APIRouter, Form, Path, Query, Request
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from on_api.core.errors import (
    BadRequest,
    ContentDamaged,
    EgressBudgetExceeded,
    InternalError,
    NodeError,
    NodeTimeout,
    NodeUnavailable,
    NotFound,
    OnApiError,
    PassphraseNeeded,
    PayloadTooLarge,
    PreconditionFailed,
    RangeNotSatisfiable,
    SecretUnavailable,
    ServiceUnavailable,
    SharePasswordRequired,
    TooManyRequests,
    UnsupportedMediaType,
    WrongPassphrase,
)
from on_api.core.models.file import FOR_PASSPHRASE
from on_api.core.services.accounts.audit import Actor
from on_api.core.services.container import Services
from on_api.core.services.files.reading import RangeOpener, Reading
from on_api.core.services.shares.shares import PASSWORD_LENGTH, Shared
from on_api.core.services.traffic.metering import Charge, Kind
from on_api.core.streams.blocks import Bytes
from on_api.core.web.binary_bodies import UNCHANGED_HEADERS, binary_answer, header
from on_api.core.web.dependencies import ClientDep, ServicesDep
from on_api.core.web.error_handlers import FAILURE, ErrorFormat, render_failure
from on_api.core.web.openapi import REF
from on_api.core.web.responses import file_response
from on_api.core.web.routing import ApiRoute, documented
from on_api.public.share_page import Offer, message_page, offer_page

PREFIX = "/s"
PASSWORD_HEADER = "on-api-share-password"  # noqa: S105 (a header's name)
PASSPHRASE_HEADER = "on-api-passphrase"  # noqa: S105

_PRIVATE: Mapping[str, str] = MappingProxyType(
    {
        "Cache-Control": "private, no-store",
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept",
        "X-Robots-Tag": "noindex",
    }
)

# Matches every path below the prefix, so that no redirect to one without a slash repeats the token.
_PATH = "/{token:path}"

router = APIRouter(prefix=PREFIX, tags=["shares"], route_class=ApiRoute)

EnteredSecret = Annotated[
    str | None,
    Form(max_length=PASSWORD_LENGTH, description="The password, if the link requires one."),
]
ShareToken = Annotated[
    str,
    Path(
        description="The token of the link: what follows `/s/` in its URL.",
        examples=["a1B2c3d4E5f6g7H8i9J0k1L2"],
    ),
]

_PRIVACY_HEADERS = {
    "Referrer-Policy": header("Keeps the link from being sent to other sites.", "no-referrer"),
    "X-Robots-Tag": header("Keeps the link out of search engines.", "noindex"),
}
_WORDS = {
    "application/json": {"schema": {"$ref": REF.format(model=FAILURE.models[0].__name__)}},
    "text/html": {"schema": {"type": "string"}},
}
"""Media types of an error: for a program, and for a person."""


def _described(answers: Mapping[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    return {
        status: {
            **answer,
            "headers": {**answer.get("headers", {}), **_PRIVACY_HEADERS},
            **({"content": _WORDS} if int(status) >= 400 else {}),
        }
        for status, answer in answers.items()
    }


_ANSWERS = _described(
    {
        200: binary_answer(
            "The content of the file, with its own media type; for browsers, a page with a"
            " download button."
        ),
        206: binary_answer("The range requested with `Range`."),
        304: {
            "description": "The content has not changed (`If-None-Match`).",
            "headers": UNCHANGED_HEADERS,
        },
        **documented(
            BadRequest,
            PassphraseNeeded,
            SharePasswordRequired,
            WrongPassphrase,
            NotFound,
            PreconditionFailed,
            RangeNotSatisfiable,
            TooManyRequests,
            EgressBudgetExceeded,
            InternalError,
            NodeError,
            ContentDamaged,
            ServiceUnavailable,
            NodeUnavailable,
            SecretUnavailable,
            NodeTimeout,
        ),
    }
)
_FORM_ANSWERS = _ANSWERS | _described(documented(PayloadTooLarge, UnsupportedMediaType))


@router.head(_PATH, response_class=Response, responses=_ANSWERS)
@router.get(_PATH, response_class=Response, responses=_ANSWERS)
async def open_share(
    token: ShareToken,
    request: Request,
    services: ServicesDep,
    client: ClientDep,
    download: Annotated[
        bool,
        Query(
            description="Return the content of the file to browsers as well, instead of the page.",
            examples=[True],
        ),
    ] = False,
    exposed: Annotated[str | None, Query(alias="password", include_in_schema=False)] = None,
) -> Response:
    """Download the file of a share link; browsers get a page with a download button."""
    if exposed is not None:
        raise SharePasswordRequired(
            "Send a link's password in the header On-Api-Share-Password or with the page's"
            " form, not in the URL, which may be recorded."
        )
    headers = request.headers
    for_person = "range" not in headers and not download and _prefers_html(headers)
    password = _secret(headers, PASSWORD_HEADER)
    passphrase = _secret(headers, PASSPHRASE_HEADER)

    shared = await services.strangers.in_thread(services.shares.find, token)
    if for_person:
        services.shares.require(shared, shared.size)
        return offer_page(_offer(shared), headers=_PRIVATE)
    file = await _reading(services, shared, password, passphrase, client)
    charge = _charge(shared)
    return await file_response(
        request, file, services.meter, charge, download=download, caching=_PRIVATE
    )


@router.post(_PATH, response_class=Response, responses=_FORM_ANSWERS)
async def download_share(
    token: ShareToken,
    request: Request,
    services: ServicesDep,
    client: ClientDep,
    password: EnteredSecret = None,
    passphrase: EnteredSecret = None,
    _download: Annotated[
        bool, Query(alias="download", description="Has no effect here.", examples=[True])
    ] = False,
) -> Response:
    """Download the whole file from the page's form."""
    shared = await services.strangers.in_thread(services.shares.find, token)
    try:
        file = await _reading(services, shared, password, passphrase, client)
        # The answer to a form is the whole file, whatever else the request asks for.
        return await file_response(
            request,
            file,
            services.meter,
            _charge(shared),
            download=True,
            whole=True,
            caching=_PRIVATE,
        )
    except OnApiError as error:
        if error.status >= 500 or not _prefers_html(request.headers):
            raise
        headers = {**_PRIVATE, **error.headers}
        nothing_entered = isinstance(error, SharePasswordRequired) and password is None
        message = "Enter the password for this link." if nothing_entered else error.details
        return offer_page(_offer(shared), error=message, status=error.status, headers=headers)


class _ErrorResponse(Response):
    """Error response for a person or for a program, as the request prefers."""

    def __init__(self, error: OnApiError) -> None:
        super().__init__(status_code=error.status)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Implement ASGI."""
        error = self._error
        if _prefers_html(Headers(scope=scope)):
            headers = {**_PRIVATE, **error.headers}
            response: Response = message_page(error.details, status=error.status, headers=headers)
        else:
            response = render_failure(error)
            response.headers.update(_PRIVATE)
        await response(scope, receive, send)


ERRORS = ErrorFormat(_ErrorResponse, FAILURE.models, FAILURE.media_type)


async def _reading(
    services: Services,
    shared: Shared,
    password: str | None,
    passphrase: str | None,
    client: Actor,
) -> Reading:
    """Return the shared file's bytes, to be counted as they are sent. Raises the errors for a wrong
    password or passphrase."""
    await services.shares.check_password(shared.share, password, client.client)
    asker = services.private_files.stranger(shared.file, client.client)
    file = await services.reader.read(shared.file, passphrase=passphrase, asker=asker)
    return replace(file, open=_counted(services, shared, file.open))


def _counted(services: Services, shared: Shared, open_part: RangeOpener) -> RangeOpener:
    """Return an opener that counts a part against the share's limits before its first byte."""
    shares, threads = services.shares, services.strangers

    @asynccontextmanager
    async def open_counted(offset: int, length: int) -> AsyncIterator[AsyncIterator[Bytes]]:
        shares.require(shared, length)
        sent = 0

        async def count(chunks: AsyncIterator[Bytes]) -> AsyncGenerator[Bytes]:
            nonlocal sent
            async for chunk in chunks:
                sent += len(chunk)
                yield chunk

        # A part that the node can't open is not counted as a download.
        async with open_part(offset, length) as chunks:
            await threads.in_thread(shares.take, shared, length)
            try:
                async with aclosing(count(chunks)) as counted:
                    yield counted
            finally:
                if sent < length:
                    # If even that fails, it stays counted: too much, never too little.
                    with CancelScope(shield=True), suppress(OnApiError):
                        await threads.in_thread(shares.give_back, shared, length - sent)

    return open_counted


def _charge(shared: Shared) -> Charge:
    share, file = shared.share, shared.file
    return Charge(Kind.SHARE, share.user_id, share_id=share.id, file_id=file.id, cid=file.cid)


def _offer(shared: Shared) -> Offer:
    return Offer(
        name=shared.file.name,
        size=shared.size,
        media_type=shared.file.media_type,
        asks_password=shared.share.password_hash is not None,
        asks_passphrase=shared.file.sealed_for == FOR_PASSPHRASE,
    )


def _secret(headers: Headers, name: str) -> str | None:
    """Return a header's secret, read as UTF-8, which clients send there in spite of the RFC."""
    value = headers.get(name)
    if value is None:
        return None
    return value.encode("latin-1").decode(errors="replace")


def _prefers_html(headers: Headers) -> bool:
    """Return whether `Accept` names HTML with no lower weight than anything else, as browsers
    do."""
    html = best = 0.0
    for choice in headers.get("accept", "").split(","):
        media_type, *parameters = (part.strip().lower() for part in choice.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            weight = float(quality)
        except ValueError:
            continue
        best = max(best, weight)
        if media_type == "text/html":
            html = weight
    return html > 0 and html >= best
