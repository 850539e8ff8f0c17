"""Pins: the IPFS Pinning Service API 1.0.0 to the letter, the same in every version.

Names of operations and parameters, statuses and words are the specification's; its parameters are
written out below because the framework has no comma-separated lists.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import TypeAdapter, ValidationError

from on_api.core.errors import BadRequest, InsufficientFunds, NotFound
from on_api.core.models import Pin as PinRow
from on_api.core.pagination import TimePage
from on_api.core.schemas.common import GivenMoment
from on_api.core.schemas.pins import (
    MAX_META_ENTRIES,
    Pin,
    PinMeta,
    PinName,
    PinResults,
    PinStatus,
    Status,
    TextMatchingStrategy,
)
from on_api.core.services.pins.pins import PinFilter, get_pin, pins_of
from on_api.core.web.dependencies import (
    PinsRead,
    PinsWrite,
    ServicesDep,
    SessionDep,
    TransactionDep,
)
from on_api.core.web.error_texts import describe
from on_api.core.web.json_text import read_json
from on_api.core.web.routing import ApiRoute, documented

shared_router = APIRouter(prefix="/pins", tags=["pins"], route_class=ApiRoute)

MAX_CIDS = 10
DEFAULT_LIMIT = 10

_ERRORS = {
    **documented(NotFound, InsufficientFunds),
    "4XX": {"description": "Error response (Custom service error)"},
    "5XX": {"description": "Error response (Unexpected internal server error)"},
}


def _parameter(name: str, description: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, **more}


_MOMENT = {"type": "string", "format": "date-time", "examples": ["2027-01-01T00:00:00Z"]}
_LIST_PARAMETERS = [
    _parameter(
        "cid",
        "Return pin objects responsible for pinning the specified CID(s)",
        schema={
            "type": "array",
            "items": {"type": "string"},
            "uniqueItems": True,
            "minItems": 1,
            "maxItems": MAX_CIDS,
            "examples": [["bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"]],
        },
        style="form",
        explode=False,
    ),
    _parameter(
        "name",
        "Return pin objects with specified name (by default a case-sensitive, exact match)",
        schema={"type": "string", "maxLength": 255, "examples": ["PreciousData.pdf"]},
    ),
    _parameter(
        "match",
        "Customize the text matching strategy applied when the name filter is present",
        schema={
            "type": "string",
            "enum": list(TextMatchingStrategy),
            "default": "exact",
            "examples": ["partial"],
        },
    ),
    _parameter(
        "status",
        "Return pin objects for pins with the specified status (when missing: pinned only, or "
        "every status when cid, name or meta is given)",
        schema={
            "type": "array",
            "items": {"type": "string", "enum": list(Status)},
            "uniqueItems": True,
            "minItems": 1,
            "examples": [["queued", "pinning"]],
        },
        style="form",
        explode=False,
    ),
    _parameter(
        "before", "Return results created (queued) before provided timestamp", schema=_MOMENT
    ),
    _parameter("after", "Return results created (queued) after provided timestamp", schema=_MOMENT),
    _parameter(
        "limit",
        "Max records to return",
        schema={
            "type": "integer",
            "format": "int32",
            "minimum": 1,
            "maximum": 1000,
            "default": DEFAULT_LIMIT,
            "examples": [100],
        },
    ),
    _parameter(
        "meta",
        "Return pin objects that match specified metadata keys passed as a string representation "
        "of a JSON object",
        content={
            "application/json": {
                "schema": {
                    "type": "object",
                    "additionalProperties": {"type": "string"},
                    "maxProperties": MAX_META_ENTRIES,
                    "examples": [{"app_id": "99986338-1113-4706-8302-4420da6158aa"}],
                }
            }
        },
    ),
]

_Hidden = Query(include_in_schema=False)
_Words = Annotated[list[str] | None, _Hidden]
"""Several, by commas; some clients repeat the parameter instead."""


async def _pin_filter(
    cid: _Words = None,
    name: Annotated[PinName | None, _Hidden] = None,
    match: Annotated[TextMatchingStrategy, _Hidden] = TextMatchingStrategy.EXACT,
    status: _Words = None,
    meta: Annotated[str | None, Query(max_length=20_000, include_in_schema=False)] = None,
) -> PinFilter:
    """Filter of a list of pins."""
    cids = _split(cid)
    if len(cids) > MAX_CIDS:
        raise BadRequest(f"cid: at most {MAX_CIDS} CIDs are allowed.")
    try:
        statuses = [Status(word) for word in _split(status)]
    except ValueError:
        raise BadRequest(f"status: must be one of {', '.join(Status)}.") from None
    return PinFilter(cids, name, match, statuses, None if meta is None else _meta(meta))


def _split(words: list[str] | None) -> list[str]:
    return [] if words is None else ",".join(words).split(",")


async def _page(
    before: Annotated[GivenMoment | None, _Hidden] = None,
    after: Annotated[GivenMoment | None, _Hidden] = None,
    limit: Annotated[int, Query(ge=1, le=1000, include_in_schema=False)] = DEFAULT_LIMIT,
) -> TimePage:
    """Part of a list of pins."""
    return TimePage(limit, before, after)


async def _delegates(services: ServicesDep) -> Sequence[str]:
    return await services.watch.delegates()


RequestId = Annotated[
    str,
    Path(
        description="Globally unique identifier of the pin request",
        examples=["0190f3b2-7a51-7c4e-9d2f-3b6c8a1e5d47"],
    ),
]

DelegatesDep = Annotated[Sequence[str], Depends(_delegates)]
"""Addresses at which clients find the node."""


@shared_router.get(
    "",
    operation_id="getPins",
    summary="List pin objects",
    responses=_ERRORS,
    response_model_exclude_none=True,
    openapi_extra={"parameters": _LIST_PARAMETERS},
)
def get_pins(
    principal: PinsRead,
    session: SessionDep,
    delegates: DelegatesDep,
    wanted: Annotated[PinFilter, Depends(_pin_filter)],
    page: Annotated[TimePage, Depends(_page)],
) -> PinResults:
    """List all the pin objects, matching optional filters; when no filter is provided, only
    successful pins are returned"""
    count, rows = pins_of(session, principal.user_id, wanted, page)
    return PinResults(count=count, results=[PinStatus.of(row, delegates) for row in rows])


@shared_router.post(
    "",
    operation_id="addPin",
    summary="Add pin object",
    status_code=202,
    responses=_ERRORS,
    response_model_exclude_none=True,
)
async def add_pin(
    body: Pin,
    principal: PinsWrite,
    services: ServicesDep,
    transaction: TransactionDep,
    delegates: DelegatesDep,
) -> PinStatus:
    """Add a new pin object for the current access token"""

    def record(session: SessionDep, row: PinRow) -> None:
        transaction.record(session, PinStatus.of(row, delegates))

    row = await services.pins.add(principal.user_id, body.as_request(), record)
    return PinStatus.of(row, delegates)


@shared_router.get(
    "/{requestid}",
    operation_id="getPinByRequestId",
    summary="Get pin object",
    responses=_ERRORS,
    response_model_exclude_none=True,
)
def get_pin_by_request_id(
    requestid: RequestId, principal: PinsRead, session: SessionDep, delegates: DelegatesDep
) -> PinStatus:
    """Get a pin object and its status"""
    row = get_pin(session, principal.user_id, _request_id(requestid))
    return PinStatus.of(row, delegates)


@shared_router.post(
    "/{requestid}",
    operation_id="replacePinByRequestId",
    summary="Replace pin object",
    status_code=202,
    responses=_ERRORS,
    response_model_exclude_none=True,
)
def replace_pin_by_request_id(
    requestid: RequestId,
    body: Pin,
    principal: PinsWrite,
    session: SessionDep,
    services: ServicesDep,
    delegates: DelegatesDep,
) -> PinStatus:
    """Replace an existing pin object (shortcut for executing remove and add operations in one step
    to avoid unnecessary garbage collection of blocks present in both recursive pins)"""
    row = services.pins.replace(
        session, principal.user_id, _request_id(requestid), body.as_request()
    )
    return PinStatus.of(row, delegates)


@shared_router.delete(
    "/{requestid}",
    operation_id="deletePinByRequestId",
    summary="Remove pin object",
    status_code=202,
    response_class=Response,
    responses=_ERRORS,
)
def delete_pin_by_request_id(
    requestid: RequestId, principal: PinsWrite, session: SessionDep, services: ServicesDep
) -> Response:
    """Remove a pin object"""
    services.pins.remove(session, principal.user_id, _request_id(requestid))
    return Response(status_code=202)


def _request_id(text: str) -> uuid.UUID:
    """Opaque to clients: what is no id of ours, letter by letter, is of no pin."""
    try:
        request_id = uuid.UUID(text)
    except ValueError:
        raise NotFound from None
    if str(request_id) != text:
        raise NotFound
    return request_id


_META: TypeAdapter[dict[str, str]] = TypeAdapter(PinMeta)


def _meta(text: str) -> dict[str, str]:
    try:
        return _META.validate_python(read_json(text))
    except ValidationError as error:
        raise BadRequest(f"meta: {describe(error.errors())}") from None
    except (ValueError, RecursionError):
        raise BadRequest("meta: not valid JSON.") from None
