"""The audit log in version 2: by cursor."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from on_api.core.schemas.common import Absent, Answer, NextCursor, Text
from on_api.core.schemas.node import AuditEvent
from on_api.core.services.accounts.audit import events
from on_api.core.web.dependencies import Admin, CursorQuery, SessionDep
from on_api.core.web.routing import ApiRoute

router = APIRouter(prefix="/audit", tags=["audit"], route_class=ApiRoute)


class AuditPage(Answer):
    """A page of the audit log, newest first."""

    items: list[AuditEvent] = Field(description="The entries on this page.")
    next_cursor: NextCursor


@router.get("")
def list_audit_events(
    _principal: Admin,
    session: SessionDep,
    cursors: CursorQuery,
    actor_id: Annotated[
        uuid.UUID | Absent,
        Query(
            description="Return only actions of this user.",
            examples=["0190f3b2-7a51-7c4e-9d2f-3b6c8a1e5d47"],
        ),
    ] = None,
    action: Annotated[
        Text | Absent,
        Query(
            max_length=64,
            description="Return only entries with this action.",
            examples=["key.create"],
        ),
    ] = None,
) -> AuditPage:
    """List the audit log, newest entries first."""
    rows, behind = events(actor_id=actor_id, action=action).by_cursor(session, cursors.page)
    items = [AuditEvent.model_validate(row) for row in rows]
    return AuditPage(items=items, next_cursor=cursors.next(behind))
