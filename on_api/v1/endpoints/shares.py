"""Shares: links to one file for people without an account. What a link answers is in
`public/shares.py`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from on_api.core.errors import NotFound, TooManyRequests
from on_api.core.schemas.shares import Share, ShareCreate, ShareCreated, ShareList
from on_api.core.services.accounts.keys import require_in_force
from on_api.core.services.accounts.scrypt_pool import Asker
from on_api.core.services.shares.shares import ShareRequest, get_share, shares_of
from on_api.core.web.dependencies import (
    ClientDep,
    PageQuery,
    ServicesDep,
    SessionDep,
    SharedFileQuery,
    ShareId,
    SharesWrite,
    act_as,
)
from on_api.core.web.routing import ApiRoute, documented

shared_router = APIRouter(prefix="/shares", tags=["shares"], route_class=ApiRoute)
replaced_router = APIRouter(prefix="/shares", tags=["shares"], route_class=ApiRoute)


async def _hash_given(
    body: ShareCreate, principal: SharesWrite, services: ServicesDep, client: ClientDep
) -> str | None:
    if body.password is None:
        return None
    asker = Asker.user(principal.user_id, client.client)
    return await services.login.hash_password(body.password, asker)


@shared_router.post("", status_code=201, responses=documented(NotFound, TooManyRequests))
def create_share(
    body: ShareCreate,
    password_hash: Annotated[str | None, Depends(_hash_given)],
    principal: SharesWrite,
    session: SessionDep,
    services: ServicesDep,
    client: ClientDep,
    response: Response,
) -> ShareCreated:
    """Create a share link to a file. Its URL is only shown in this response.

    Browsers that open the link get a page with a download button, and other programs get the
    content (with `Range` and `ETag`; `?download=1` also returns it to browsers). Passwords are sent
    with the page's form or in the header `On-Api-Share-Password`.
    """
    require_in_force(session, principal.key_id)  # it may have ended while the hash was waited for
    request = ShareRequest(body.file_id, body.expires_at, body.max_downloads, password_hash)
    actor = act_as(principal, client)
    row, token = services.shares.create(session, principal.user_id, request, actor)
    shown = Share.of(row)
    response.headers["Cache-Control"] = "no-store"
    return ShareCreated(**shown.model_dump(), url=f"{services.settings.base_url}/s/{token}")


@replaced_router.get("")
def list_my_shares(
    principal: SharesWrite, session: SessionDep, page: PageQuery, file_id: SharedFileQuery = None
) -> ShareList:
    """List your share links that have not been revoked, newest first."""
    count, rows = shares_of(principal.user_id, file_id).by_time(session, page)
    return ShareList(count=count, items=[Share.of(row) for row in rows])


@shared_router.get("/{share_id}", responses=documented(NotFound))
def get_one_share(share_id: ShareId, principal: SharesWrite, session: SessionDep) -> Share:
    """Get one of your share links."""
    return Share.of(get_share(session, principal.user_id, share_id))


@shared_router.delete("/{share_id}", status_code=204, responses=documented(NotFound))
def revoke_share(
    share_id: ShareId,
    principal: SharesWrite,
    session: SessionDep,
    services: ServicesDep,
    client: ClientDep,
) -> None:
    """Revoke a share link, with immediate effect."""
    services.shares.revoke(session, principal.user_id, share_id, act_as(principal, client))
