"""Columns that every job of the worker has."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from on_api.core.models.database import new_id


class LeasedJob:
    """Mixin of a row that is worked on by whoever holds `lease_token`, until `lease_until` by the
    database's clock. From then on it is anybody's again, as after a crash.

    `services/shared/leased_jobs.py` has the statements.
    """

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    due_at: Mapped[datetime | None] = mapped_column()
    """When to try (again)."""
    attempts: Mapped[int] = mapped_column(default=0)
    """How often it was claimed; claims that were given back uncounted are left out."""
    lease_token: Mapped[uuid.UUID | None] = mapped_column()
    lease_until: Mapped[datetime | None] = mapped_column()

    def release(self) -> None:
        """End the lease: nobody works on it any more."""
        self.lease_token = self.lease_until = None
