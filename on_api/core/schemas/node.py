"""Schemas of the node, the audit log and the service's health."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pydantic import Field

from on_api.core.schemas.common import Answer, Moment
from on_api.core.services.accounts.audit import MOST_COUNTED_ROWS


class Maintenance(Answer):
    """The result of the last run of a maintenance task."""

    finished_at: Moment | None = Field(description="When it ran; null if it never did.")
    result: dict[str, Any] | None = Field(
        description="The result of the run.",
        examples=[{"outcome": "collected", "freed_bytes": 1048576, "seconds": 0.4}],
    )


class Exchanged(Answer):
    """Bytes of blocks transferred by Bitswap since the node started."""

    sent: int = Field(description="Bytes sent to other nodes.")
    received: int = Field(description="Bytes received from other nodes.")


class NodeInfo(Answer):
    """The IPFS node that on-api uses."""

    id: str = Field(description="The node's libp2p peer ID.")
    agent: str = Field(description="The name of the node's software.", examples=["kubo"])
    version: str = Field(description="The version of the node's software.", examples=["0.43.0"])
    tested: bool = Field(description="Whether on-api was tested with this version.")
    tested_range: str = Field(
        description="The range of versions that on-api was tested with.",
        examples=[">=0.43.0,<0.44"],
    )
    peers: int = Field(description="The number of connected peers.")
    repo_size: int = Field(description="The size of the node's repo in bytes.")
    repo_limit: int = Field(description="The soft limit for the size of the repo in bytes.")
    exchanged: Exchanged | None = Field(
        description="Traffic between this node and other nodes. `/traffic`, which counts what"
        " on-api sends to clients, does not include it. Null if the node does not report it."
    )
    pins: int | None = Field(
        description="The number of contents that on-api keeps pinned, counted periodically; null"
        " if not yet counted."
    )
    last_gc: Maintenance = Field(description="The last garbage collection.")
    last_fsck: Maintenance = Field(description="The last run of `on-api fsck`.")


class AuditEvent(Answer):
    """An entry of the audit log."""

    id: uuid.UUID = Field(description="The ID of the entry. It never changes.")
    created_at: Moment = Field(description="When the action was performed.")
    actor_id: uuid.UUID | None = Field(
        description="The user who performed the action; null if it was not a logged-in user."
    )
    actor_key_id: uuid.UUID | None = Field(description="The key that was used.")
    action: str = Field(description="The action that was performed.", examples=["key.create"])
    target_type: str = Field(description="The type of the object.", examples=["key"])
    target_id: uuid.UUID | None = Field(description="The ID of the object.")
    client: str | None = Field(description="The IP address of the client.")
    details: dict[str, Any] = Field(description="Further details, without secrets.")


class AuditList(Answer):
    """A page of the audit log, newest first."""

    count: int = Field(
        description=f"The total number of matching entries, up to {MOST_COUNTED_ROWS:,}."
    )
    items: list[AuditEvent] = Field(description="The newest matching entries.")


class Health(Answer):
    """Liveness of the process."""

    status: Literal["ok"] = Field(
        description="Always `ok`; a process that is not alive sends no response."
    )


class Check(Answer):
    """The check of one component."""

    name: str = Field(description="The component that was checked.", examples=["database"])
    ok: bool = Field(description="Whether the component works.")
    needed: bool = Field(
        description="Whether the service is not ready unless this component works."
    )
    details: str = Field(description="What is wrong, or what was found.")


class Readiness(Answer):
    """Readiness of the service."""

    ready: bool = Field(description="Whether all required components work.")
    checks: list[Check] = Field(description="The checks of all components.")
