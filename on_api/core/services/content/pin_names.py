"""What the pins that on-api makes are called: after this deployment and the work that made them.

By its name a pin that a crash has left is told from other people's, and from work in flight.
"""

from __future__ import annotations

import uuid

from sqlalchemy import select
from sqlalchemy.orm import Session

from on_api.core.models import Database, Deployment
from on_api.core.models.database import insert_unless_there, new_id, utc_now


class PinNames:
    """Names pins, and reads the names of those found. Blocks on the database at its first call."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._deployment: str | None = None

    def of(self, job: uuid.UUID) -> str:
        """The name of a pin made by an upload or job."""
        return f"{self.prefix()}{job}"

    def job_of(self, pin_name: str) -> uuid.UUID | None:
        """The upload or job that made a pin; None for a pin that isn't ours."""
        prefix = self.prefix()
        if not pin_name.startswith(prefix):
            return None
        try:
            return uuid.UUID(pin_name.removeprefix(prefix))
        except ValueError:
            return None

    def prefix(self) -> str:
        """What the names of all pins of this deployment begin with."""
        if self._deployment is None:
            with self._database.session_scope() as session:
                self._deployment = deployment(session).name
        return f"on-api/{self._deployment}/"


def deployment(session: Session, *, lock: bool = False) -> Deployment:
    """This deployment's row, made at the first call; with `lock` nobody else changes it."""
    insert_unless_there(session, Deployment, id=1, name=new_id().hex[:12], created_at=utc_now())
    statement = select(Deployment)
    return session.scalars(statement.with_for_update() if lock else statement).one()
