"""API keys in version 2: lists by cursor; everything else is v1's."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from on_api.core.schemas.common import Answer, NextCursor
from on_api.core.schemas.keys import Key
from on_api.core.services.accounts.keys import keys_of
from on_api.core.web.dependencies import CursorQuery, KeysWrite, SessionDep
from on_api.core.web.routing import ApiRoute, add_flat
from on_api.v1.endpoints.keys import shared_router

router = APIRouter(route_class=ApiRoute)
replacing_router = APIRouter(prefix="/keys", tags=["keys"], route_class=ApiRoute)


class KeyPage(Answer):
    """A page of keys, newest first."""

    items: list[Key] = Field(description="The keys on this page.")
    next_cursor: NextCursor


@replacing_router.get("")
def list_my_keys(principal: KeysWrite, session: SessionDep, cursors: CursorQuery) -> KeyPage:
    """List your valid keys, newest first."""
    rows, behind = keys_of(principal.user_id).by_cursor(session, cursors.page)
    items = [Key.model_validate(row) for row in rows]
    return KeyPage(items=items, next_cursor=cursors.next(behind))


add_flat(router, replacing_router)
add_flat(router, shared_router)
