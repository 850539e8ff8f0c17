"""Files in version 2: lists by cursor; everything else is v1's."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from on_api.core.schemas.common import Answer, NextCursor
from on_api.core.schemas.files import StoredFile
from on_api.core.services.files.files import files_of
from on_api.core.web.dependencies import CursorQuery, FileQuery, FilesRead, ServicesDep, SessionDep
from on_api.core.web.routing import ApiRoute, add_flat
from on_api.v1.endpoints.files import shared_router

router = APIRouter(route_class=ApiRoute)
replacing_router = APIRouter(prefix="/files", tags=["files"], route_class=ApiRoute)


class FilePage(Answer):
    """A page of files, newest first."""

    items: list[StoredFile] = Field(description="The files on this page.")
    next_cursor: NextCursor


@replacing_router.get("")
def list_my_files(
    principal: FilesRead,
    session: SessionDep,
    services: ServicesDep,
    cursors: CursorQuery,
    wanted: FileQuery,
) -> FilePage:
    """List your files, newest first."""
    listing = files_of(session, principal.user_id, wanted)
    rows, behind = listing.by_cursor(session, cursors.page)
    items = [StoredFile.of(row, services.settings.base_url) for row in rows]
    return FilePage(items=items, next_cursor=cursors.next(behind))


add_flat(router, replacing_router)
add_flat(router, shared_router)
