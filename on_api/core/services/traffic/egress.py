"""Egress budgets: what each account has spent, in slices of credit that are taken from the database
before they are used.

An account's counter is raised by a slice in the transaction that takes it, and lowered when the
rest is returned, so at every moment it is at least what was delivered; the open credit of a killed
process stays counted. Credit is used in `metering.py`.

Each transaction writes all that the process holds, not a difference: if a commit is not confirmed,
the next one corrects the state whether it happened or not.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, delete, select, tuple_
from sqlalchemy.orm import Session

from on_api.core.errors import EgressBudgetExceeded
from on_api.core.models import (
    ApiKey,
    Database,
    EgressCounter,
    EgressCredit,
    MeteringProcess,
    User,
)
from on_api.core.models.database import database_now, dialect_of, insert_into, insert_or_lock
from on_api.core.models.traffic import EVERYBODY, INSTANCE, KEY, OWNER
from on_api.core.services.shared import events
from on_api.core.services.traffic.sums import Sums, add_traffic
from on_api.core.setting_groups import TrafficSettings

logger = logging.getLogger(__name__)

THRESHOLDS = (100, 80)
"""Percentages of a budget that are reported, the highest first."""
SMALLEST_SLICE_BYTES = 64 * 1024
REST_DIVISOR = 8
"""Divisor: a slice takes at most this part of what a budget leaves. Otherwise the first slice could
take all of a small budget and leave nothing for other processes."""

_ACCOUNTS_AT_ONCE = 1000
_RANKS = {OWNER: 0, KEY: 1, INSTANCE: 2}
"""Order in which counters are locked: the instance's comes last, as every process needs it, so that
it is locked for the shortest time."""


class Subject(NamedTuple):
    """Account in one month (`2026-11`)."""

    kind: str
    id: uuid.UUID
    month: str


@dataclass(frozen=True, slots=True)
class CreditRequest:
    """Bytes that a process holds of an account, and bytes that it asks for.

    `held`: open credit, including what is used but not part of a flush. `needed` is granted as far
    as the budget allows, `wanted` where it leaves much more.
    """

    subject: Subject
    held: int
    needed: int = 0
    wanted: int = 0


@dataclass(frozen=True, slots=True)
class Flush:
    """Counts since the last flush. `settled`: the part of each account's open credit that was
    used."""

    number: int
    counted: Sequence[Sums]
    settled: Mapping[Subject, int]


@dataclass(frozen=True, slots=True)
class AccountState:
    """State of an account after a transaction: bytes granted by it, and what the budget leaves
    beyond all open credit (below 0: exceeded). `budget` None: no limit, so `room` means nothing."""

    granted: int
    budget: int | None
    room: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Notice that an account has reached a threshold of its budget."""

    subject: Subject
    percent: int
    budget: int
    bytes: int


@dataclass(slots=True)
class Synced:
    """Result of a transaction."""

    states: dict[Subject, AccountState] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)


def instance(month: str) -> Subject:
    """Return the account of the whole instance in a month."""
    return Subject(INSTANCE, EVERYBODY, month)


class EgressLedger:
    """The database's side of metering. Thread-safe."""

    def __init__(self, database: Database, settings: TrafficSettings) -> None:
        self._database = database
        self._settings = settings

    def sync(
        self,
        process_id: uuid.UUID,
        requests: Collection[CreditRequest],
        flush: Flush | None,
    ) -> Synced:
        """Write what a process holds and has counted, and grant what it asks for, in one
        transaction.

        A flush is written once, however often it is sent. Raises `DatabaseUnavailable`, after which
        the transaction may or may not have been committed.
        """
        synced = Synced()
        with self._database.session_scope() as session:
            is_new = _register(session, process_id, flush)
            if flush is not None and is_new:
                add_traffic(session, flush.counted)
            settled = flush.settled if flush is not None and is_new else {}
            ordered = sorted(requests, key=lambda request: _lock_order(request.subject))
            for start in range(0, len(ordered), _ACCOUNTS_AT_ONCE):
                some = ordered[start : start + _ACCOUNTS_AT_ONCE]
                self._settle(session, process_id, some, settled, synced)
        log_notices(synced.notices)
        return synced

    def look_up(self, subjects: Collection[Subject]) -> dict[Subject, AccountState]:
        """Return the present state of budgets, without taking anything."""
        with self._database.session_scope(write=False) as session:
            budgets = self._budgets(session, subjects)
            spent = {
                Subject(row.subject_kind, row.subject_id, row.month): row.bytes
                for row in session.scalars(
                    select(EgressCounter).where(_is_one_of(EgressCounter, subjects))
                )
            }
        return {
            subject: AccountState(0, budget, (budget or 0) - spent.get(subject, 0))
            for subject, budget in budgets.items()
        }

    def spend(
        self, session: Session, subjects: Collection[Subject], size: int
    ) -> tuple[Collection[Subject], list[Notice]]:
        """Count bytes at once, without credit. Returns the accounts that were charged (keys without
        a budget are left out), and the notices to log after the commit.

        Raises `EgressBudgetExceeded` where a budget leaves less, with open credit of processes
        counted as spent: the caller must then roll the transaction back.
        """
        budgets = self._budgets(session, subjects)
        counters = _lock_counters(session, sorted(budgets, key=_lock_order))
        notices = []
        for subject, counter in counters.items():
            budget = budgets[subject]
            counter.bytes += size
            is_bounded = self._settings.over_budget != "allow"
            if is_bounded and budget is not None and counter.bytes > budget:
                raise EgressBudgetExceeded(retry_after=0)
            if (notice := _notice(counter, subject, budget)) is not None:
                counter.warned_percent, counter.warned_budget = notice.percent, budget
                notices.append(notice)
                _tell(session, notice)
        return list(budgets), notices

    def give_back(self, session: Session, sizes: Mapping[Subject, int]) -> None:
        """Lower counters by bytes that were spent but not sent (raise them for negative sizes)."""
        for subject, counter in _lock_counters(session, sorted(sizes, key=_lock_order)).items():
            counter.bytes = max(0, counter.bytes - sizes[subject])

    def _settle(
        self,
        session: Session,
        process_id: uuid.UUID,
        requests: Sequence[CreditRequest],
        settled: Mapping[Subject, int],
        synced: Synced,
    ) -> None:
        budgets = self._budgets(session, [request.subject for request in requests])
        requests = [request for request in requests if request.subject in budgets]
        if not requests:
            return
        subjects = [request.subject for request in requests]
        counters = _lock_counters(session, subjects)
        credits_open = _credits_of(session, process_id, subjects)
        for request in requests:
            subject, counter = request.subject, counters[request.subject]
            credit = credits_open.get(subject)
            # All that this process doesn't hold: credit open in others, and bytes delivered for
            # good.
            spent = counter.bytes - (credit.bytes if credit is not None else 0)
            spent += settled.get(subject, 0)
            budget = budgets[subject]
            granted = request.wanted
            if budget is not None and self._settings.over_budget != "allow":
                granted = _grant(request, max(0, budget - spent - request.held))
            held = request.held + granted
            counter.bytes = spent + held
            if (notice := _notice(counter, subject, budget)) is not None:
                counter.warned_percent, counter.warned_budget = notice.percent, budget
                synced.notices.append(notice)
                _tell(session, notice)
            if credit is not None:
                credit.bytes = held
            elif held:
                session.add(EgressCredit(process_id=process_id, **_key_of(subject), bytes=held))
            synced.states[subject] = AccountState(granted, budget, (budget or 0) - spent - held)
        session.flush()
        session.execute(
            delete(EgressCredit).where(
                EgressCredit.process_id == process_id, EgressCredit.bytes == 0
            )
        )

    def _budgets(
        self, session: Session, subjects: Collection[Subject]
    ) -> dict[Subject, int | None]:
        """Return the budget of each account. Keys without one are left out: nothing is counted for
        them."""
        owners = {subject.id for subject in subjects if subject.kind == OWNER}
        keys = {subject.id for subject in subjects if subject.kind == KEY}
        of_owners = _numbers(session, User.id, User.egress_budget, owners)
        of_keys = _numbers(session, ApiKey.id, ApiKey.egress_budget, keys)
        budgets: dict[Subject, int | None] = {}
        for subject in subjects:
            if subject.kind == OWNER:
                budgets[subject] = of_owners.get(subject.id)
            elif subject.kind == INSTANCE:
                budgets[subject] = self._settings.instance_budget
            elif (budget := of_keys.get(subject.id)) is not None:
                budgets[subject] = budget
        return budgets


def log_notices(notices: Sequence[Notice]) -> None:
    """Log the thresholds that were reached, after their commit."""
    for notice in notices:
        logger.warning(
            "egress budget: %s %s has reached %d %% of %d bytes in %s",
            notice.subject.kind,
            notice.subject.id,
            notice.percent,
            notice.budget,
            notice.subject.month,
        )


def _register(session: Session, process_id: uuid.UUID, flush: Flush | None) -> bool:
    """Record that the process lives. Returns whether the flush is still to be written.

    A process that was taken for dead is inserted again: its open credit is then counted twice, once
    as lost.
    """
    row = insert_or_lock(
        session, MeteringProcess, ["id"], id=process_id, seen_at=database_now(), flushed=0
    )
    row.seen_at = database_now()
    if flush is None or row.flushed >= flush.number:
        return False
    row.flushed = flush.number
    return True


def _grant(request: CreditRequest, room: int) -> int:
    cautious = max(SMALLEST_SLICE_BYTES, room // REST_DIVISOR)
    return min(room, max(request.needed, min(request.wanted, cautious)))


def _notice(counter: EgressCounter, subject: Subject, budget: int | None) -> Notice | None:
    """Return the threshold that was reached and not reported yet, or None. A changed budget starts
    anew."""
    if budget is None or not counter.bytes:
        return None
    percents = (percent for percent in THRESHOLDS if counter.bytes * 100 >= budget * percent)
    reached = next(percents, 0)
    warned = counter.warned_percent if counter.warned_budget == budget else 0
    return Notice(subject, reached, budget, counter.bytes) if reached > warned else None


def _tell(session: Session, notice: Notice) -> None:
    """Record the event for those concerned: the account's user, or every administrator."""
    kind, subject_id, month = notice.subject
    if kind == OWNER:
        whose = select(User.id).where(User.id == subject_id)
    elif kind == KEY:
        whose = select(ApiKey.user_id).where(ApiKey.id == subject_id)
    else:
        whose = select(User.id).where(User.is_admin, User.active)
    for user_id in session.scalars(whose.order_by(User.id) if kind == INSTANCE else whose):
        events.record(
            session,
            user_id,
            "egress.threshold",
            subject_id,
            account=kind,
            month=month,
            percent=notice.percent,
            budget=notice.budget,
            bytes=notice.bytes,
        )


def _lock_counters(session: Session, subjects: Sequence[Subject]) -> dict[Subject, EgressCounter]:
    """Lock the counters of accounts in the order given, inserting missing ones, and return them."""
    new = insert_into(dialect_of(session), EgressCounter).values(
        [{**_key_of(subject), "bytes": 0, "warned_percent": 0} for subject in subjects]
    )
    rows = session.scalars(
        # An update that changes nothing: `DO NOTHING` would neither lock nor return the row.
        new.on_conflict_do_update(
            index_elements=["subject_kind", "subject_id", "month"],
            set_={"month": new.excluded.month},
        ).returning(EgressCounter),
        execution_options={"populate_existing": True},
    )
    return {Subject(row.subject_kind, row.subject_id, row.month): row for row in rows}


def _credits_of(
    session: Session, process_id: uuid.UUID, subjects: Sequence[Subject]
) -> dict[Subject, EgressCredit]:
    rows = session.scalars(
        select(EgressCredit).where(
            EgressCredit.process_id == process_id, _is_one_of(EgressCredit, subjects)
        )
    )
    return {Subject(row.subject_kind, row.subject_id, row.month): row for row in rows}


def _numbers(
    session: Session, key: Any, value: Any, ids: Collection[uuid.UUID]
) -> dict[uuid.UUID, int | None]:
    if not ids:
        return {}
    return {row[0]: row[1] for row in session.execute(select(key, value).where(key.in_(ids)))}


def _is_one_of(
    table: type[EgressCounter | EgressCredit], subjects: Collection[Subject]
) -> ColumnElement[bool]:
    # The first two conditions are redundant, but SQLite uses no index for a tuple alone.
    return and_(
        table.subject_kind.in_({subject.kind for subject in subjects}),
        table.subject_id.in_({subject.id for subject in subjects}),
        tuple_(table.subject_kind, table.subject_id, table.month).in_(list(subjects)),
    )


def _key_of(subject: Subject) -> dict[str, Any]:
    return {"subject_kind": subject.kind, "subject_id": subject.id, "month": subject.month}


def _lock_order(subject: Subject) -> tuple[int, str, str]:
    return _RANKS[subject.kind], subject.id.hex, subject.month
