"""Names of the pins that on-api makes: they tell this deployment and the job that made the pin.

By its name a pin that a crash has left is told from pins of others, and from those of running work.
"""

from __future__ import annotations

import uuid

from sqlalchemy import select
from sqlalchemy.orm import Session

from on_api.core.models import Database, Deployment
from on_api.core.models.database import insert_unless_there, new_id, utc_now


class PinNames:
    """Source of pin names, which also parses names that are found. Its first call blocks on the
    database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._deployment: str | None = None

    def of(self, job: uuid.UUID) -> str:
        """Return the name of a pin made by an upload or job."""
        return f"{self.prefix()}{job}"

    def job_of(self, pin_name: str) -> uuid.UUID | None:
        """Return the upload or job that made a pin; None for a pin of another deployment or
        program."""
        prefix = self.prefix()
        if not pin_name.startswith(prefix):
            return None
        try:
            return uuid.UUID(pin_name.removeprefix(prefix))
        except ValueError:
            return None

    def prefix(self) -> str:
        """Return the prefix of the names of all pins of this deployment."""
        if self._deployment is None:
            with self._database.session_scope() as session:
                self._deployment = deployment(session).name
        return f"on-api/{self._deployment}/"


def deployment(session: Session, *, lock: bool = False) -> Deployment:
    """Return this deployment's row, inserted at the first call; `lock` locks it."""
    insert_unless_there(session, Deployment, id=1, name=new_id().hex[:12], created_at=utc_now())
    statement = select(Deployment)
    return session.scalars(statement.with_for_update() if lock else statement).one()
