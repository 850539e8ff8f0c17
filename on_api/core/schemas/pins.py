"""Schemas of pins, exactly as in the IPFS Pinning Service API 1.0.0. Optional members without a
value are absent, never null."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)

from on_api.core.ipfs.formats.multiaddr import MAX_ADDRESSES, Multiaddr
from on_api.core.models import Pin as PinRow
from on_api.core.schemas.common import Absent, storable_text
from on_api.core.services.pins.pins import PinRequest

_SOMEBODY = "12D3KooWJ59N9z5CyLTtcUvzuRQDdGMbGRsUGv4zGbGKGN1Vdzpa"

MAX_META_ENTRIES = 1000
MAX_META_BYTES = 16 * 1024


class Status(StrEnum):
    """Status a pin object can have at a pinning service"""

    QUEUED = "queued"
    PINNING = "pinning"
    PINNED = "pinned"
    FAILED = "failed"


class TextMatchingStrategy(StrEnum):
    """Alternative text matching strategy"""

    EXACT = "exact"
    IEXACT = "iexact"
    PARTIAL = "partial"
    IPARTIAL = "ipartial"


def _dialable(value: object) -> list[str] | None:
    """Return the multiaddrs that could be dialled at all, if any. A pin is never refused for the
    others."""
    items = value if isinstance(value, list) else []
    known = [item for item in items if isinstance(item, str) and Multiaddr.parse(item)]
    return list(dict.fromkeys(known))[:MAX_ADDRESSES] or None


def _bounded_meta(value: dict[str, str]) -> dict[str, str]:
    if sum(len(name.encode()) + len(text.encode()) for name, text in value.items()) > (
        MAX_META_BYTES
    ):
        raise ValueError(f"must not exceed {MAX_META_BYTES} bytes")
    return value


def _milliseconds(value: datetime) -> str:
    return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")


PinText = Annotated[str, AfterValidator(storable_text)]
PinName = Annotated[PinText, StringConstraints(max_length=255)]
PinMeta = Annotated[
    dict[PinText, PinText],
    Field(max_length=MAX_META_ENTRIES, description="Optional metadata for pin object"),
    AfterValidator(_bounded_meta),
]
PinMoment = Annotated[
    datetime,
    PlainSerializer(_milliseconds, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""Moment in an answer, to the millisecond, which clients keep exactly."""


class Pin(BaseModel):
    """Pin object"""

    # Clients of other services may send fields that those services define.
    model_config = ConfigDict(extra="ignore")

    cid: str = Field(
        description="Content Identifier (CID) to be pinned recursively",
        examples=["bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"],
    )
    name: PinName | Absent = Field(
        default=None,
        description="Optional name for pinned data; can be used for lookups later",
        examples=["PreciousData.pdf"],
    )
    origins: Annotated[list[str] | Absent, BeforeValidator(_dialable)] = Field(
        default=None,
        json_schema_extra={"maxItems": MAX_ADDRESSES, "uniqueItems": True},
        description="Optional list of multiaddrs known to provide the data; those that can't be"
        " dialled are ignored",
        examples=[[f"/ip4/203.0.113.142/tcp/4001/p2p/{_SOMEBODY}"]],
    )
    meta: PinMeta | Absent = Field(
        default=None,
        description="Optional metadata for pin object",
        examples=[{"app_id": "99986338-1113-4706-8302-4420da6158aa"}],
    )

    def as_request(self) -> PinRequest:
        """Convert it for the service."""
        return PinRequest(self.cid, self.name or None, self.origins or (), self.meta)


class PinStatus(BaseModel):
    """Pin object with status"""

    requestid: str = Field(
        description="Globally unique identifier of the pin request; can be used to check the "
        "status of ongoing pinning, or pin removal",
        examples=["UniqueIdOfPinRequest"],
    )
    status: Status
    created: PinMoment = Field(
        description="Immutable timestamp indicating when a pin request entered a pinning service; "
        "can be used for filtering results and pagination",
        examples=["2020-07-27T17:32:28.276Z"],
    )
    pin: Pin
    delegates: list[str] = Field(
        min_length=1,
        max_length=20,
        json_schema_extra={"uniqueItems": True},
        description="List of multiaddrs designated by pinning service that will receive the pin "
        "data",
        examples=[[f"/ip4/203.0.113.1/tcp/4001/p2p/{_SOMEBODY}"]],
    )
    info: Annotated[dict[str, str], Field(max_length=MAX_META_ENTRIES)] | Absent = Field(
        default=None,
        description="Optional info for PinStatus response",
        examples=[{"status_details": "Queue position: 7 of 9"}],
    )

    @classmethod
    def of(cls, row: PinRow, delegates: Sequence[str]) -> Self:
        """Return a row's schema."""
        return cls(
            requestid=str(row.id),
            status=Status(row.status),
            created=row.created_at,
            pin=Pin(cid=row.source_cid, name=row.name, origins=row.origins or None, meta=row.meta),
            delegates=list(delegates),
            info=_info(row),
        )


class PinResults(BaseModel):
    """Response used for listing pin objects matching request"""

    count: int = Field(
        ge=0,
        json_schema_extra={"format": "int32"},
        description="The total number of pin objects that exist for passed query filters",
        examples=[1],
    )
    results: list[PinStatus] = Field(
        max_length=1000,
        json_schema_extra={"uniqueItems": True},
        description="An array of PinStatus results",
    )


def _info(row: PinRow) -> dict[str, str] | None:
    imported = row.source_created_at
    known: dict[str, Any] = {
        "status_details": row.details,
        # While blocks are being fetched, the values are those so far.
        "dag_size" if row.status == Status.PINNED else "fetched_bytes": row.dag_size,
        "blocks" if row.status == Status.PINNED else "fetched_blocks": row.blocks,
        "source_created_at": None if imported is None else _milliseconds(imported),
    }
    return {name: str(value) for name, value in known.items() if value is not None} or None
