"""Shares in version 2: lists by cursor; everything else is v1's."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from on_api.core.schemas.common import Answer, NextCursor
from on_api.core.schemas.shares import Share
from on_api.core.services.shares.shares import shares_of
from on_api.core.web.dependencies import CursorQuery, SessionDep, SharedFileQuery, SharesWrite
from on_api.core.web.routing import ApiRoute, add_flat
from on_api.v1.endpoints.shares import shared_router

router = APIRouter(route_class=ApiRoute)
replacing_router = APIRouter(prefix="/shares", tags=["shares"], route_class=ApiRoute)


class SharePage(Answer):
    """A page of links, newest first."""

    items: list[Share] = Field(description="The links on this page.")
    next_cursor: NextCursor


@replacing_router.get("")
def list_my_shares(
    principal: SharesWrite,
    session: SessionDep,
    cursors: CursorQuery,
    file_id: SharedFileQuery = None,
) -> SharePage:
    """List your share links that have not been revoked, newest first."""
    rows, behind = shares_of(principal.user_id, file_id).by_cursor(session, cursors.page)
    items = [Share.of(row) for row in rows]
    return SharePage(items=items, next_cursor=cursors.next(behind))


add_flat(router, replacing_router)
add_flat(router, shared_router)
