"""Schemas of the node, the audit log and the service's health."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pydantic import Field

from on_api.core.schemas.common import Answer, Moment
from on_api.core.services.accounts.audit import MOST_COUNTED_ROWS


class Maintenance(Answer):
    """Outcome of the last run of one kind of maintenance."""

    finished_at: Moment | None = Field(description="When; null: never.")
    result: dict[str, Any] | None = Field(
        description="What it did.",
        examples=[{"outcome": "collected", "freed_bytes": 1048576, "seconds": 0.4}],
    )


class Exchanged(Answer):
    """Bytes of blocks, by Bitswap, since the node started."""

    sent: int = Field(description="To other nodes.")
    received: int = Field(description="From other nodes.")


class NodeInfo(Answer):
    """The IPFS node behind on-api."""

    id: str = Field(description="The node's libp2p peer id.")
    agent: str = Field(description="The program.", examples=["kubo"])
    version: str = Field(description="Its version.", examples=["0.43.0"])
    tested: bool = Field(description="Whether on-api was tested with this version.")
    tested_range: str = Field(description="The versions tested.", examples=[">=0.43.0,<0.44"])
    peers: int = Field(description="Connected peers.")
    repo_size: int = Field(description="Bytes in the node's store.")
    repo_limit: int = Field(description="The store's soft limit in bytes.")
    exchanged: Exchanged | None = Field(
        description="Between this node and others. It is not part of `/traffic`, which counts what "
        "on-api sends to clients; null: the node doesn't say."
    )
    pins: int | None = Field(
        description="Contents that on-api keeps pinned, counted now and then; null: not yet."
    )
    last_gc: Maintenance = Field(description="The last garbage collection.")
    last_fsck: Maintenance = Field(description="The last `on-api fsck`.")


class AuditEvent(Answer):
    """One line of the audit log."""

    id: uuid.UUID = Field(description="Never changes.")
    created_at: Moment = Field(description="When it happened.")
    actor_id: uuid.UUID | None = Field(description="The user who acted; null: nobody logged in.")
    actor_key_id: uuid.UUID | None = Field(description="The key they used.")
    action: str = Field(description="What was done.", examples=["key.create"])
    target_type: str = Field(description="To what kind of thing.", examples=["key"])
    target_id: uuid.UUID | None = Field(description="To which one.")
    client: str | None = Field(description="From which address.")
    details: dict[str, Any] = Field(description="More, without secrets.")


class AuditList(Answer):
    """A page of the audit log, newest first."""

    count: int = Field(description=f"How many lines match, up to {MOST_COUNTED_ROWS:,}.")
    items: list[AuditEvent] = Field(description="The newest of them.")


class Health(Answer):
    """Sign of life of the process."""

    status: Literal["ok"] = Field(description="Always `ok`: else there is no answer.")


class Check(Answer):
    """One thing that the service needs."""

    name: str = Field(description="What was looked at.", examples=["database"])
    ok: bool = Field(description="Whether it is well.")
    needed: bool = Field(description="Whether the service is not ready without it.")
    details: str = Field(description="What is wrong, or what was seen.")


class Readiness(Answer):
    """Readiness of the service to do its work."""

    ready: bool = Field(description="Whether all that are needed are well.")
    checks: list[Check] = Field(description="Each thing looked at.")
