"""Traffic reports: one's own, and everybody's for administrators."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from on_api.core.errors import NotFound
from on_api.core.schemas.common import Absent, GivenMoment
from on_api.core.schemas.traffic import TrafficReport
from on_api.core.services.accounts.access import Scope
from on_api.core.services.traffic.reports import (
    GroupBy,
    Interval,
    ReportRequest,
    SortBy,
    make_report,
)
from on_api.core.web.dependencies import ServicesDep, SessionDep, TrafficRead
from on_api.core.web.routing import ApiRoute, documented

MAX_LINES = 1000

shared_router = APIRouter(prefix="/traffic", tags=["traffic"], route_class=ApiRoute)


@shared_router.get(
    "",
    response_model=TrafficReport,
    response_model_exclude_unset=True,
    responses={
        200: {"content": {"text/csv": {"schema": {"type": "string"}}}},
        **documented(NotFound),
    },
)
def get_traffic(
    request: Request,
    principal: TrafficRead,
    session: SessionDep,
    services: ServicesDep,
    interval: Annotated[
        Interval, Query(description="The length of each period.", examples=["month"])
    ] = Interval.DAY,
    group_by: Annotated[
        GroupBy | Absent,
        Query(description="How to group the traffic within each period.", examples=["file"]),
    ] = None,
    begin: Annotated[
        GivenMoment | Absent,
        Query(
            alias="from",
            description="Start at the period that contains this time; by default 2 days (hours),"
            " 31 days (days) or a year (months) before `to`.",
        ),
    ] = None,
    end: Annotated[
        GivenMoment | Absent,
        Query(alias="to", description="The end of the range; by default, the present."),
    ] = None,
    user_id: Annotated[
        uuid.UUID | Absent,
        Query(
            description="Return only the traffic of this user (administrators only).",
            examples=["0190f3b2-7a51-7c4e-9d2f-3b6c8a1e5d47"],
        ),
    ] = None,
    sort: Annotated[
        SortBy | Absent,
        Query(
            description="`period`: earliest first. `bytes_out`: most bytes first, which is the"
            " default with `group_by`.",
            examples=["bytes_out"],
        ),
    ] = None,
    limit: Annotated[
        int,
        Query(
            ge=1,
            le=MAX_LINES,
            description=f"Maximum number of items to return, at most {MAX_LINES}.",
            examples=[20],
        ),
    ] = 100,
    format: Annotated[
        Literal["json", "csv"] | Absent,
        Query(
            description="`csv`: return the items as text/csv, as with `Accept: text/csv`.",
            examples=["csv"],
        ),
    ] = None,
) -> Response | TrafficReport:
    """Report outgoing and incoming traffic: yours, or that of all users with an administrator's key
    that has the scope `admin`.

    The report is a few seconds old. Traffic that a process may have sent before it was killed is
    reported as kind `unattributed`: a total is never less than what was delivered.
    """
    owner_id = user_id
    if not principal.allows(Scope.ADMIN):
        if user_id not in {None, principal.user_id}:
            raise NotFound
        owner_id = principal.user_id
    settings = services.settings.traffic
    wanted = ReportRequest(owner_id, interval, group_by, begin, end, sort, limit)
    report = TrafficReport.of(make_report(session, wanted, settings), group_by, settings)
    accepted = request.headers.get("accept", "").partition(";")[0].partition(",")[0].strip()
    if format == "csv" or (format is None and accepted == "text/csv"):
        return Response(report.as_csv(group_by), media_type="text/csv", headers={"Vary": "Accept"})
    return report
