"""Quarantine of pins with names of ours that no row accounts for: recorded when first seen, and
ended only when seen again long after.

One sight proves nothing: the database may be older than the node, restored from a backup, and then
the newer half of the users' content looks just like a crash's leftovers.
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
    """A pin in quarantine: the earliest time at which it may be ended, and whether that has
    come."""

    ends_at: datetime
    over: bool


class Quarantine:
    """Quarantine as seen by one run. `wait` is the time from the first sight to the end, by the
    database's clock."""

    def __init__(self, database: Database, wait: timedelta) -> None:
        self._database = database
        self._wait = wait
        self._run = new_id()

    def is_known(self, job: uuid.UUID, cid: str) -> bool:
        """Return whether the database knows the work that made a pin, and that it has ended: always
        when its lease lists the pin.

        Does not count: a lease that expired longer ago than workers take to notice, since a
        database so old may be older than the pin; and a pin of another content, after which a whole
        batch was named.
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
        """Record that a pin was seen in this run."""
        with self._database.session_scope() as session:
            now = moment_of(session)
            insert_unless_there(
                session, QuarantinedPin, cid=cid, job=job, run=self._run, first_seen_at=now
            )
            row = session.scalars(
                select(QuarantinedPin).where(QuarantinedPin.cid == cid).with_for_update()
            ).one()
            if row.job != job:  # the earlier one is gone: this is another pin on the same content
                row.job, row.first_seen_at = job, now
            row.run = self._run
            ends_at = row.first_seen_at + self._wait
            return Sight(ends_at, ends_at <= now)

    def release(self, cid: str) -> None:
        """End the quarantine of a pin that was removed."""
        with self._database.session_scope() as session:
            session.execute(delete(QuarantinedPin).where(QuarantinedPin.cid == cid))

    def forget_unseen(self) -> None:
        """Delete pins that this run has not seen, after it has checked all: they are gone from the
        node, or belong to a content by now."""
        with self._database.session_scope() as session:
            session.execute(delete(QuarantinedPin).where(QuarantinedPin.run != self._run))
