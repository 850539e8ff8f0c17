"""Upkeep of traffic: hours are merged into days, days into months, and the open credit of dead
processes is recorded.

Each step moves rows within one transaction, so repeating it, or running two at once, does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from on_api.core.models import AccelCharge, Database, EgressCredit, MeteringProcess, Traffic
from on_api.core.models.database import moment_of
from on_api.core.models.traffic import DAY, HOUR, INSTANCE, MONTH, OWNER
from on_api.core.services.traffic.reports import last_moment
from on_api.core.services.traffic.sums import COUNTS, Charge, Kind, Sums, add_traffic
from on_api.core.setting_groups import TrafficSettings

BURIED_AFTER = timedelta(hours=1)
"""Silence after which a process counts as dead. If it comes back later, its credit is counted
twice."""
ACCEL_KEPT = timedelta(days=1)
"""Time to wait for nginx's log; an answer that is not logged by then stays charged in full. The
hours of its charge are not merged before."""
BATCH_ROWS = 2000
"""Rows moved in one transaction."""


def keep_traffic(
    database: Database, settings: TrafficSettings, now: datetime | None = None
) -> None:
    """Run all steps that are due."""
    if now is None:
        with database.session_scope(write=False) as session:
            now = moment_of(session)
    while _bury_one(database, now - BURIED_AFTER):
        pass
    with database.session_scope() as session:
        session.execute(delete(AccelCharge).where(AccelCharge.created_at < now - ACCEL_KEPT))
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    until_day = today - timedelta(days=settings.hours_kept)
    while merge_some(database, HOUR, DAY, until_day):
        pass
    until_month = (today - timedelta(days=settings.days_kept)).replace(day=1)
    while merge_some(database, DAY, MONTH, until_month):
        pass


def merge_some(database: Database, fine: str, coarse: str, until: datetime) -> bool:
    """Move up to `BATCH_ROWS` rows of periods before `until` into coarser ones. Returns whether
    there may be more."""
    with database.session_scope() as session:
        rows = session.scalars(
            select(Traffic)
            .where(Traffic.granularity == fine, Traffic.period < until)
            .order_by(Traffic.period)
            .limit(BATCH_ROWS)
            # Rows that another process is moving are skipped.
            .with_for_update(skip_locked=True)
        ).all()
        add_traffic(session, [_coarser(row, coarse) for row in rows], coarse)
        session.execute(delete(Traffic).where(Traffic.id.in_([row.id for row in rows])))
        return len(rows) == BATCH_ROWS


def _coarser(row: Traffic, granularity: str) -> Sums:
    period = row.period.replace(hour=0)
    return Sums(
        period if granularity == DAY else period.replace(day=1),
        Charge(Kind(row.kind), row.owner_id, row.key_id, row.share_id, row.file_id, row.cid),
        **{name: getattr(row, name) for name in COUNTS},
    )


def _bury_one(database: Database, silent_since: datetime) -> bool:
    """Record what one dead process had open, and delete it. Returns whether there was one."""
    with database.session_scope() as session:
        process = session.scalar(
            select(MeteringProcess)
            .where(MeteringProcess.seen_at < silent_since)
            .order_by(MeteringProcess.seen_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if process is None:
            return False
        left = session.scalars(
            select(EgressCredit).where(EgressCredit.process_id == process.id)
        ).all()
        add_traffic(session, _unattributed(left, process.seen_at))
        _forget(session, process)
        return True


def _unattributed(left: Sequence[EgressCredit], seen_at: datetime) -> list[Sums]:
    """Return sums of the owners' open bytes, and of what the instance had open beyond them."""
    sums: list[Sums] = []
    for month in sorted({credit.month for credit in left}):
        of_month = [credit for credit in left if credit.month == month]
        period = last_moment(seen_at, month)
        owners = {c.subject_id: c.bytes for c in of_month if c.subject_kind == OWNER}
        in_all = sum(c.bytes for c in of_month if c.subject_kind == INSTANCE)
        beyond = in_all - sum(owners.values())
        for owner_id, size in [*owners.items(), (None, beyond)]:
            if size > 0:
                sums.append(Sums(period, Charge(Kind.UNATTRIBUTED, owner_id), bytes_out=size))
    return sums


def _forget(session: Session, process: MeteringProcess) -> None:
    session.execute(delete(EgressCredit).where(EgressCredit.process_id == process.id))
    session.delete(process)
