"""Accounts in version 2: lists by cursor; everything else is v1's."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from on_api.core.errors import NotFound
from on_api.core.schemas.common import Answer, NextCursor
from on_api.core.schemas.files import StoredFile
from on_api.core.schemas.users import User
from on_api.core.services.accounts.users import all_users, get_user
from on_api.core.services.files.files import FileFilter, files_of
from on_api.core.web.dependencies import Admin, CursorQuery, ServicesDep, SessionDep, UserId
from on_api.core.web.routing import ApiRoute, add_flat, documented
from on_api.v1.endpoints.users import shared_router
from on_api.v2.endpoints.files import FilePage

router = APIRouter(route_class=ApiRoute)
replacing_router = APIRouter(prefix="/users", tags=["users"], route_class=ApiRoute)


class UserPage(Answer):
    """A page of accounts, newest first."""

    items: list[User] = Field(description="The accounts on this page.")
    next_cursor: NextCursor


@replacing_router.get("")
def list_all_users(_principal: Admin, session: SessionDep, cursors: CursorQuery) -> UserPage:
    """List all accounts, newest first."""
    rows, behind = all_users().by_cursor(session, cursors.page)
    items = [User.model_validate(row) for row in rows]
    return UserPage(items=items, next_cursor=cursors.next(behind))


@replacing_router.get("/{user_id}/files", responses=documented(NotFound))
def list_files_of_user(
    user_id: UserId,
    _principal: Admin,
    session: SessionDep,
    services: ServicesDep,
    cursors: CursorQuery,
) -> FilePage:
    """List the files of any user, newest first."""
    get_user(session, user_id)
    rows, behind = files_of(session, user_id, FileFilter()).by_cursor(session, cursors.page)
    items = [StoredFile.of(row, services.settings.base_url) for row in rows]
    return FilePage(items=items, next_cursor=cursors.next(behind))


add_flat(router, replacing_router)
add_flat(router, shared_router)
