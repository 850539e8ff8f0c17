"""The audit log: who did what to whom, written in the transaction that does it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from on_api.core.models import AuditEvent
from on_api.core.services.shared.paging import Listing


@dataclass(frozen=True, slots=True)
class Actor:
    """The acting party: a user through a key and from an address; all None for an anonymous call.
    See `COMMAND_LINE` for the command line."""

    user_id: uuid.UUID | None = None
    key_id: uuid.UUID | None = None
    client: str | None = None


COMMAND_LINE = Actor(client="command line")
MOST_COUNTED_ROWS = 10_000


def record(
    session: Session,
    actor: Actor,
    action: str,
    target_type: str,
    target_id: uuid.UUID | None = None,
    **details: Any,
) -> None:
    """Add one entry to the log. `action` reads like `key.create`; `details` must hold no secret."""
    session.add(
        AuditEvent(
            actor_id=actor.user_id,
            actor_key_id=actor.key_id,
            action=action,
            target_type=target_type,
            target_id=target_id,
            client=actor.client,
            details=details,
        )
    )


def events(*, actor_id: uuid.UUID | None, action: str | None) -> Listing[AuditEvent]:
    """Return the log, narrowed to one actor or action if given. Entries are counted up to
    `MOST_COUNTED_ROWS` only: the log is never cut, and an exact counter would make every login
    wait for it."""
    statement = select(AuditEvent)
    if actor_id is not None:
        statement = statement.where(AuditEvent.actor_id == actor_id)
    if action is not None:
        statement = statement.where(AuditEvent.action == action)
    return Listing(statement, AuditEvent.created_at, AuditEvent.id, most_counted=MOST_COUNTED_ROWS)
