"""Rows that tests insert directly, with all required columns."""

from __future__ import annotations

import uuid

from on_api.core.models import Pin, User, UserUsage
from on_api.core.models.database import new_id, utc_now


def user_row(username: str) -> User:
    """Return an active user with counters."""
    user = User(id=new_id(), username=username, is_admin=False, active=True)
    user.usage = UserUsage(file_count=0, storage_bytes=0, reserved_bytes=0)
    return user


def pin_row(user_id: uuid.UUID, cid: str, **changes: object) -> Pin:
    """Return a queued pin that is due now; `changes` override columns."""
    now = utc_now()
    values: dict[str, object] = {
        "id": new_id(),
        "origins": [],
        "status": "queued",
        "created_at": now,
        "due_at": now,
        "deadline_at": now,
        "attempts": 0,
        "needs_fetch": False,
        **changes,
    }
    return Pin(user_id=user_id, cid=cid, source_cid=cid, **values)
