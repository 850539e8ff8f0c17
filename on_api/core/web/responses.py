"""Responses that stream a file's bytes: complete, or visibly cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from on_api.core.conditional import plan
from on_api.core.services.files.reading import Reading
from on_api.core.services.traffic.metering import Charge, Meter
from on_api.core.setting_groups import GatewaySettings
from on_api.core.streams.blocks import Bytes
from on_api.core.web.middleware import TICKET

CONTENT_SANDBOX = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
)
"""Content-Security-Policy of every response with users' bytes: it denies them our origin and any
script."""

BodyOpener = Callable[[], AbstractAsyncContextManager[AsyncIterator[Bytes]]]


class ContentResponse(Response):
    """Response that streams what `open_body` yields. Its length must be in the headers: when fewer
    bytes come, the exception leaves here after the start, and the server cuts the connection."""

    def __init__(self, open_body: BodyOpener, status: int, headers: dict[str, str]) -> None:
        super().__init__(status_code=status)
        # Not through `Response`: it would add a Content-Length of the empty body.
        self.raw_headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in headers.items()
        ]
        self._open_body = open_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. The body is opened first: a failure before its first byte is still
        answered as an error."""
        gone = asyncio.ensure_future(until_disconnect(receive))
        try:
            async with self._open_body() as chunks:
                await send(
                    {
                        "type": "http.response.start",
                        "status": self.status_code,
                        "headers": self.raw_headers,
                    }
                )
                async for chunk in chunks:
                    if gone.done():
                        return
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()


async def file_response(
    request: Request,
    file: Reading,
    meter: Meter,
    charge: Charge,
    *,
    download: bool,
    whole: bool = False,
    caching: Mapping[str, str] | None = None,
) -> Response:
    """Return the answer to a GET or HEAD of a file's bytes, in full or in part, and open its
    ticket. With `whole` it is answered in full, whatever the request's headers ask for. `caching`
    are the headers that say who may cache it; by default only its owner.

    Raises `PreconditionFailed`, `RangeNotSatisfiable`, `EgressBudgetExceeded`; sending the response
    raises the errors of opening the file.
    """
    wanted = plan({} if whole else request.headers, etag=file.etag, size=file.size)
    is_head = request.method == "HEAD"
    carried = 0 if is_head or wanted.status == 304 else wanted.length
    await have_counted(request, meter, charge, carried)

    shared = {"ETag": file.etag, **(_owners_caching(file) if caching is None else caching)}
    if wanted.status == 304:
        return Response(status_code=304, headers=shared)
    shared |= {
        "Accept-Ranges": "bytes",
        "Content-Length": str(wanted.length),
        "Content-Type": file.media_type,
        "Content-Disposition": content_disposition(file.name, download=download),
        "Content-Security-Policy": CONTENT_SANDBOX,
        "X-Content-Type-Options": "nosniff",
    }
    if wanted.status == 206:
        last = wanted.offset + wanted.length - 1
        shared["Content-Range"] = f"bytes {wanted.offset}-{last}/{file.size}"
    if is_head:
        return Response(status_code=wanted.status, headers=shared)
    return ContentResponse(
        lambda: file.open(wanted.offset, wanted.length),
        wanted.status,
        shared,
    )


async def have_counted(request: Request, meter: Meter, charge: Charge, length: int | None) -> None:
    """Open a ticket for the answer to a request, of `length` bytes (None: not known; 0: only the
    request is counted). Raises `EgressBudgetExceeded` when a budget leaves less."""
    request.scope[TICKET] = await meter.open(charge, length)


def redirect_to_fallback(
    gateway: GatewaySettings, cid: str, name: str, *, download: bool
) -> Response:
    """Return a redirect to the fallback gateway, for public content when a budget is used up."""
    query = urlencode({"filename": name, **({"download": "true"} if download else {})})
    location = f"{gateway.fallback_url}/ipfs/{cid}?{query}"
    return Response(status_code=302, headers={"Location": location, "Cache-Control": "no-store"})


def _owners_caching(file: Reading) -> Mapping[str, str]:
    # Revalidated each time: the file may be deleted, the key revoked.
    control = "private, no-store" if file.private else "private, no-cache"
    return {"Cache-Control": control, "Vary": "Authorization"}


def content_disposition(name: str, *, download: bool) -> str:
    """Return the header for any Unicode name (RFC 6266): an ASCII fallback, and `filename*` (RFC
    8187) if needed."""
    kind = "attachment" if download else "inline"
    # Control characters can't be in a name; characters that the header's grammar or a file system
    # can't take are replaced.
    fallback = "".join(
        character
        if character.isascii() and character.isprintable() and character not in '"\\/%'
        else "_"
        for character in name
    )
    if fallback == name:
        return f'{kind}; filename="{name}"'
    return f"{kind}; filename=\"{fallback}\"; filename*=UTF-8''{quote(name, safe='')}"


async def until_disconnect(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
