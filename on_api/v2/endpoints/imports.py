"""Imports in version 2: lists by cursor; everything else is v1's."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from on_api.core.errors import NotFound
from on_api.core.schemas.common import Answer, NextCursor
from on_api.core.schemas.imports import Import, ImportItem
from on_api.core.services.transfer.imports import imports_of, items_of, states_of
from on_api.core.web.dependencies import (
    CursorQuery,
    ImportId,
    ImportStatusQuery,
    ImportsWrite,
    SessionDep,
)
from on_api.core.web.routing import ApiRoute, add_flat, documented
from on_api.v1.endpoints.imports import shared_router

router = APIRouter(route_class=ApiRoute)
replacing_router = APIRouter(prefix="/imports", tags=["imports"], route_class=ApiRoute)


class ImportPage(Answer):
    """A page of imports, newest first."""

    items: list[Import] = Field(description="The imports on this page.")
    next_cursor: NextCursor


class ImportItemPage(Answer):
    """A page of items, in reverse order of the source's list."""

    items: list[ImportItem] = Field(description="The items on this page.")
    next_cursor: NextCursor


@replacing_router.get("")
def list_my_imports(
    principal: ImportsWrite, session: SessionDep, cursors: CursorQuery
) -> ImportPage:
    """List your imports, newest first."""
    rows, behind = imports_of(principal.user_id).by_cursor(session, cursors.page)
    states = states_of(session, principal.user_id, rows)
    items = [Import.of(row, states[row.id]) for row in rows]
    return ImportPage(items=items, next_cursor=cursors.next(behind))


@replacing_router.get("/{import_id}/items", responses=documented(NotFound))
def list_items_of_import(
    import_id: ImportId,
    principal: ImportsWrite,
    session: SessionDep,
    cursors: CursorQuery,
    status: ImportStatusQuery = None,
) -> ImportItemPage:
    """List the items of an import, in reverse order of the source's list."""
    listing = items_of(session, principal.user_id, import_id, status)
    rows, behind = listing.by_cursor(session, cursors.page)
    items = [ImportItem.of(row) for row in rows]
    return ImportItemPage(items=items, next_cursor=cursors.next(behind))


add_flat(router, replacing_router)
add_flat(router, shared_router)
