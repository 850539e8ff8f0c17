"""Pins by names of ours that no row tells of: remembered when they are seen first, and free to be
ended only when they are seen again long after.

One look proves nothing: the database may be older than the node, restored from a backup, and then
the newer half of what users keep looks just like what a crash has left.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select

from on_api.core.models import Database, Lease, LeasedPin, Pin, QuarantinedPin
from on_api.core.models.database import insert_unless_there, moment_of, new_id
from on_api.core.services.content.leftovers import NOTICED


@dataclass(frozen=True, slots=True)
class Sight:
    """A pin in quarantine: from when on it may be ended, and whether that is now."""

    ends_at: datetime
    over: bool


class Quarantine:
    """One run's view of it. `wait` is from the first sight to the end; the clock is the
    database's."""

    def __init__(self, database: Database, wait: timedelta) -> None:
        self._database = database
        self._wait = wait
        self._run = new_id()

    def is_known(self, job: uuid.UUID, cid: str) -> bool:
        """Whether the database knows the work that made a pin, and so that it has ended: always
        when its lease lists the pin.

        Not by a lease that died longer ago than deaths are noticed: a database so old may be older
        than the pin. Nor by a pin of something else, after which a whole batch was named.
        """
        with self._database.session_scope(write=False) as session:
            if session.get(LeasedPin, (job, cid)) is not None:
                return True
            leased = select(Lease.lease_until).where(Lease.id == job)
            until = session.scalar(leased)
            if until is not None:
                return until + min(self._wait, NOTICED) > moment_of(session)
            mine = select(Pin.id).where(Pin.id == job, Pin.cid == cid)
            return session.scalar(mine) is not None

    def see(self, cid: str, job: uuid.UUID) -> Sight:
        """Remember that a pin was seen in this run."""
        with self._database.session_scope() as session:
            now = moment_of(session)
            insert_unless_there(
                session, QuarantinedPin, cid=cid, job=job, run=self._run, first_seen_at=now
            )
            row = session.scalars(
                select(QuarantinedPin).where(QuarantinedPin.cid == cid).with_for_update()
            ).one()
            if row.job != job:  # that one is gone: this is another pin on the same content
                row.job, row.first_seen_at = job, now
            row.run = self._run
            ends_at = row.first_seen_at + self._wait
            return Sight(ends_at, ends_at <= now)

    def release(self, cid: str) -> None:
        """A pin is ended."""
        with self._database.session_scope() as session:
            session.execute(delete(QuarantinedPin).where(QuarantinedPin.cid == cid))

    def forget_unseen(self) -> None:
        """After a run that has looked at every pin: those that it has not seen are gone from the
        node, or somebody's by now."""
        with self._database.session_scope() as session:
            session.execute(delete(QuarantinedPin).where(QuarantinedPin.run != self._run))
