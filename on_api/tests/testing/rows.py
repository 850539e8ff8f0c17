"""Rows that a test puts into the database by itself, with what every one of them needs."""

from __future__ import annotations

import uuid

from on_api.core.models import Pin, User, UserUsage
from on_api.core.models.database import new_id, utc_now


def user_row(username: str) -> User:
    """An active user, with counters."""
    user = User(id=new_id(), username=username, is_admin=False, active=True)
    user.usage = UserUsage(file_count=0, storage_bytes=0, reserved_bytes=0)
    return user


def pin_row(user_id: uuid.UUID, cid: str, **changes: object) -> Pin:
    """A queued pin that is due now; anything may be changed by name."""
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
