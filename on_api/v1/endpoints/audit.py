"""The audit log, for administrators."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Query

from on_api.core.schemas.common import Absent, Text
from on_api.core.schemas.node import AuditEvent, AuditList
from on_api.core.services.accounts.audit import events
from on_api.core.web.dependencies import Admin, PageQuery, SessionDep
from on_api.core.web.routing import ApiRoute

replaced_router = APIRouter(prefix="/audit", tags=["audit"], route_class=ApiRoute)


@replaced_router.get("")
def list_audit_events(
    _principal: Admin,
    session: SessionDep,
    page: PageQuery,
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
) -> AuditList:
    """List the audit log, newest entries first."""
    count, rows = events(actor_id=actor_id, action=action).by_time(session, page)
    return AuditList(count=count, items=[AuditEvent.model_validate(row) for row in rows])
