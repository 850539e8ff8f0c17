"""Room in a user's quota. All checks of a quota are decided here.

A result is binding while the user's counters are locked. Without the lock it is a guess that spares
work which would fail.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Iterable
from functools import cache
from typing import Any, Protocol

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import Session

from on_api.core.errors import InsufficientFunds
from on_api.core.models import Holding, User, UserUsage
from on_api.core.models.database import table_of


class _Counted(Protocol):
    """Counters of a user that use up quota."""

    @property
    def storage_bytes(self) -> int: ...
    @property
    def reserved_bytes(self) -> int: ...


class Room:
    """Bytes that a quota leaves: below 0 once it is exceeded, None without a quota."""

    __slots__ = ("left",)

    def __init__(self, left: int | None) -> None:
        self.left = left

    @classmethod
    def under(cls, quota: int | None, usage: _Counted) -> Room:
        """Return the room that a quota leaves beside what is stored and reserved."""
        stored = usage.storage_bytes + usage.reserved_bytes
        return cls(None if quota is None else quota - stored)

    @classmethod
    def of(cls, usage: UserUsage) -> Room:
        """Return the room in a user's quota. Exact while `usage` is locked."""
        # Through `usage`, which holds it: the session alone would forget it and read it each time.
        return cls.under(usage.user.storage_quota, usage)

    @property
    def is_exceeded(self) -> bool:
        """True if more is stored and reserved than the quota allows."""
        return self.left is not None and self.left < 0

    def has(self, size: int) -> bool:
        """Return whether `size` more bytes are allowed. 0 bytes always are, even over a lowered
        quota."""
        return self.left is None or size <= max(self.left, 0)

    def take(self, size: int) -> bool:
        """Take `size` bytes out of the room if it has them."""
        if not self.has(size):
            return False
        if self.left is not None:
            self.left -= size
        return True

    def at_most(self, size: int) -> int:
        """Return the part of `size` bytes that is allowed; below 0 once the quota is exceeded."""
        return size if self.left is None else min(size, self.left)


def rooms_of(session: Session, user_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Room]:
    """Return the room in the quotas of those users who exist and are not deleted, without locks."""
    found = session.connection().execute(_counters(), {"users": list(user_ids)})
    return {row.user_id: Room.under(row.storage_quota, row) for row in found}


@cache
def _counters() -> Select[Any]:
    user, usage = table_of(User), table_of(UserUsage)
    return (
        select(usage.c.user_id, usage.c.storage_bytes, usage.c.reserved_bytes, user.c.storage_quota)
        .join(user, user.c.id == usage.c.user_id)
        .where(user.c.id.in_(bindparam("users", expanding=True)), user.c.deleted_at.is_(None))
    )


def require_kept(usage: UserUsage, charged_before: int) -> None:
    """Raise `InsufficientFunds` when a user is charged more than before and more than the quota
    allows."""
    if usage.storage_bytes > charged_before and Room.of(usage).is_exceeded:
        raise InsufficientFunds


def charge_of(session: Session, user_id: uuid.UUID, cid: str, dag_size: int) -> int:
    """Return the bytes that one more reference to a content would be charged to a user."""
    return 0 if session.get(Holding, (user_id, cid)) is not None else dag_size


def freed_by(session: Session, user_id: uuid.UUID, cids: Iterable[str]) -> int:
    """Return the bytes that a user would be charged less after dropping a reference to each of
    `cids`."""
    freed = 0
    for cid, dropped in Counter(cids).items():
        holding = session.get(Holding, (user_id, cid), populate_existing=True)
        if holding is not None and holding.references == dropped:
            freed += holding.bytes
    return freed
