"""Columns that every job of the worker has."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.database import new_id


class LeasedJob:
    """Mixin for a row on which the holder of `lease_token` works, until `lease_until` by the
    database's clock. After that any worker may claim it, as after a crash.

    `services/shared/leased_jobs.py` has the statements.
    """

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    due_at: Mapped[datetime | None] = mapped_column()
    """Moment of the next attempt."""
    attempts: Mapped[int] = mapped_column(default=0)
    """Number of claims; claims that were given back uncounted are left out."""
    lease_token: Mapped[uuid.UUID | None] = mapped_column()
    lease_until: Mapped[datetime | None] = mapped_column()

    def release(self) -> None:
        """End the lease: the job is no longer being worked on."""
        self.lease_token = self.lease_until = None
