"""The meter: counts every byte that goes out before it is sent, in memory, against credit that was
taken from the database.

All of it happens on one event loop; only `EgressLedger`'s transactions run in threads, one after
the other. What was counted is written every few seconds. Knows nothing of how answers are made.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from anyio import to_thread

from on_api.core.errors import DatabaseUnavailable, EgressBudgetExceeded, OnApiError
from on_api.core.metrics import Metrics
from on_api.core.models.database import new_id
from on_api.core.models.invalidation import Invalidations
from on_api.core.models.traffic import EVERYBODY, INSTANCE, KEY, OWNER
from on_api.core.services.egress import (
    EgressLedger,
    Flush,
    Position,
    Standing,
    Subject,
)
from on_api.core.services.traffic import Charge, Kind, Sums
from on_api.core.setting_groups import TrafficSettings

__all__ = ["Charge", "Kind", "Meter", "Ticket"]

logger = logging.getLogger(__name__)

MIB = 1024 * 1024
FIRST_SLICE = 1 * MIB
LARGEST_SLICE = 64 * MIB
QUICK_SECONDS = 1.0
"""A slice used up in less doubles the next one."""
SLOW_SECONDS = 8.0
"""One that lasts longer halves it."""
START_BYTES = 64 * 1024
"""Credit with which an answer of unknown length may begin."""
ASKED_AGAIN_SECONDS = 1.0
"""How long "the budget is used up" is believed."""
PATIENCE_SECONDS = 10.0
"""How long an answer that has begun waits for a database that can't be reached."""
RETRY_SECONDS = 0.2
MOST_SUMS = 10_000
"""Sums in memory; with more they are written at once."""
LAST_SECONDS = 10.0
"""How long the end of a process waits for its last flush."""

_UNLIMITED = 2**62


class _Account:
    """Credit of one subject in memory. `room`: what the budget left beyond it when last seen."""

    __slots__ = (
        "asked",
        "budget",
        "checked_at",
        "credit",
        "exempt",
        "generation",
        "idle",
        "low",
        "room",
        "slice",
        "subject",
        "taken_at",
        "tickets",
        "used",
    )

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.credit = 0
        self.used = 0
        self.asked = 0
        self.budget: int | None = None
        self.room = 0
        self.exempt = False
        """A key without a budget of its own: nothing is counted."""
        self.generation = -1
        """The state of news when it was last compared with the database; -1: never."""
        self.checked_at = float("-inf")
        self.low = 0
        """With less credit the next slice is fetched."""
        self.slice = FIRST_SLICE
        self.taken_at = float("-inf")
        self.idle = False
        self.tickets = 0

    def next_slice(self, now: float) -> int:
        passed, self.taken_at = now - self.taken_at, now
        if passed < QUICK_SECONDS:
            self.slice = min(2 * self.slice, LARGEST_SLICE)
        elif passed > SLOW_SECONDS:
            self.slice = max(self.slice // 2, FIRST_SLICE)
        return self.slice

    @property
    def holds(self) -> bool:
        """Whether it has something open in the database."""
        return not self.exempt and bool(self.credit or self.used)

    @property
    def unused(self) -> bool:
        return not (self.holds or self.tickets)


@dataclass(slots=True)
class _Row(Sums):
    """Sums that are still being added to by so many tickets."""

    tickets: int = 0


@dataclass(frozen=True, slots=True)
class _Pending:
    """A flush that may have been written, and whose accounts it settles."""

    flush: Flush
    accounts: frozenset[_Account]


class Ticket:
    """One answer being counted. On the event loop only."""

    __slots__ = ("_accounts", "_charge", "_cut", "_meter", "_row", "_until")

    def __init__(self, meter: Meter, charge: Charge, accounts: list[_Account]) -> None:
        self._meter = meter
        self._charge = charge
        self._cut = False
        self._accounts = accounts
        for account in accounts:
            account.tickets += 1
        self._row: _Row | None = meter.row_of(charge)
        self._row.tickets += 1
        self._until = meter.hour_ends

    def take(self, n: int) -> bool:
        """Count `n` bytes that are about to be sent. False: credit is short, nothing was counted;
        await `more`."""
        if self._meter.now() >= self._until:
            self._bind_anew()
        accounts = self._accounts
        for account in accounts:
            if account.credit < n:
                return False
        for account in accounts:
            account.credit -= n
            account.used += n
            account.idle = False
            if account.credit < account.low:
                self._meter.fetch_ahead(account)
        if self._row is not None:
            self._row.bytes_out += n
        return True

    async def more(self, n: int) -> None:
        """Take credit, then count `n` bytes. Raises `EgressBudgetExceeded` when a budget has ended,
        `DatabaseUnavailable` when nobody can say: the answer has to be cut."""
        meter, deadline = self._meter, time.monotonic() + PATIENCE_SECONDS
        while not self.take(n):
            short = {account: n for account in self._accounts if account.credit < n}
            try:
                await meter.take_credit(short)
            except DatabaseUnavailable:
                if time.monotonic() >= deadline:
                    self._cut = True
                    raise
                await asyncio.sleep(RETRY_SECONDS)
                continue
            for account in self._accounts:
                if account.credit < n and meter.lacks(account, n):
                    self._cut = True
                    raise meter.exceeded(account)

    def close(self, status: int) -> None:
        """The answer is over: whole, aborted or failed (`status` 0: it never began). Counts one
        request; a second call does nothing."""
        row, self._row = self._row, None
        if row is None:
            return
        row.requests += 1
        if status == 304:
            row.unchanged += 1
        elif self._cut or not 200 <= status < 400:
            row.failed += 1
        row.tickets -= 1
        for account in self._accounts:
            account.tickets -= 1
        self._accounts = []

    def _bind_anew(self) -> None:
        """Count in the present hour, and on the accounts of its month."""
        if self._row is None:
            return  # closed
        before = self._accounts
        self._accounts = self._meter.accounts_of(self._charge)
        for account in self._accounts:
            account.tickets += 1
        for account in before:
            account.tickets -= 1
        self._row.tickets -= 1
        self._row = self._meter.row_of(self._charge)
        self._row.tickets += 1
        self._until = self._meter.hour_ends


class Meter:
    """Counts for one process. `clock` gives seconds since 1970."""

    def __init__(
        self,
        ledger: EgressLedger,
        invalidations: Invalidations,
        settings: TrafficSettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._invalidations = invalidations
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._bounded = settings.over_budget != "allow"
        self._generation = 0
        self._process_id = new_id()
        self._flushes = 0
        self._accounts: dict[tuple[str, uuid.UUID], _Account] = {}
        self._past: list[_Account] = []
        """Of months that are over, with credit to give back or use to settle."""
        self._rows: dict[tuple[float, Charge], _Row] = {}
        self._month = ""
        self._hour = datetime.fromtimestamp(0, UTC)
        self.hour_ends = 0.0
        self._asked: set[_Account] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._pending: _Pending | None = None
        self._flush_due = False
        self._closing = False
        self._working: asyncio.Task[None] | None = None
        invalidations.subscribe(self._distrust)
        metrics.watch(
            "on_api_egress_open_credit_bytes",
            "Bytes taken from budgets and not yet written as sent.",
            self._open_credit,
        )

    def now(self) -> float:
        """Seconds since 1970; turns the page when an hour or a month is over."""
        now = self._clock()
        if now >= self.hour_ends:
            self._turn_page(now)
        return now

    def try_open(self, charge: Charge, length: int | None) -> Ticket | None:
        """Begin to count an answer of `length` bytes (None: not known; 0: only its request), if
        memory alone can say that it may go out. Else None: `await open()`."""
        self.now()
        accounts = self.accounts_of(charge)
        if length != 0:
            for account in accounts:
                if account.exempt:
                    continue
                if not self._is_fresh(account):
                    return None
                limited = self._limits(account)
                needed = START_BYTES if length is None else length
                if not limited:
                    needed = min(needed, START_BYTES)
                if account.credit + (min(account.room, 0) if limited else 0) < needed:
                    return None
        return Ticket(self, charge, accounts)

    async def open(self, charge: Charge, length: int | None) -> Ticket:
        """Begin to count an answer of `length` bytes (None: not known; 0: only its request, which
        is always free).

        Raises `EgressBudgetExceeded` when a budget leaves less, `DatabaseUnavailable` when nobody
        can say.
        """
        self.now()
        if length != 0:
            await self._admit(charge, START_BYTES if length is None else length, length is None)
        return Ticket(self, charge, self.accounts_of(charge))

    def received(self, charge: Charge, size: int) -> None:
        """Count `size` bytes that came in as one request."""
        self.now()
        row = self.row_of(charge)
        row.requests += 1
        row.bytes_in += size

    async def run(self) -> None:
        """Write what was counted every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.flush_interval)
            try:
                await self.flush()
            except OnApiError as error:
                logger.warning("what went out is written later: %s", error.details)
            except Exception:
                logger.exception("what went out could not be written")

    async def flush(self) -> None:
        """Write what was counted, and give back credit that nobody uses."""
        self.now()
        if self._pending is None and not self._has_news():
            return
        self._flush_due = True
        await self._turn()

    async def close(self) -> None:
        """Write the rest and give everything back. What can't be written stays counted, without
        detail."""
        self._closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                while self._pending is not None or self._has_news():
                    try:
                        await self.flush()
                    except OnApiError:
                        await asyncio.sleep(RETRY_SECONDS)
                return
        logger.warning("what went out in the last seconds could not be written")

    # For tickets.

    def accounts_of(self, charge: Charge) -> list[_Account]:
        """On which accounts a charge is counted this month."""
        found = [self._account(INSTANCE, EVERYBODY)]
        if charge.owner_id is not None:
            found.append(self._account(OWNER, charge.owner_id))
        if charge.key_id is not None:
            found.append(self._account(KEY, charge.key_id))
        return found

    def row_of(self, charge: Charge) -> _Row:
        """The sums of a charge in this hour."""
        key = (self.hour_ends, charge)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = _Row(self._hour, charge)
            if len(self._rows) > MOST_SUMS and not self._flush_due:
                self._flush_due = True
                self._start_work()
        return row

    def fetch_ahead(self, account: _Account) -> None:
        """Have the next slice before the present one is used up."""
        if account.exempt or account in self._asked:
            return
        if self._limits(account) and account.room <= 0:
            return
        self._asked.add(account)
        self._start_work()

    async def take_credit(self, short: Mapping[_Account, int]) -> None:
        """Ask for so many bytes of credit on each account. Raises `DatabaseUnavailable`."""
        for account, needed in short.items():
            account.asked += needed
            self._asked.add(account)
        await self._turn()

    def lacks(self, account: _Account, needed: int) -> bool:
        """Whether the budget leaves less than that, open credit included."""
        return self._limits(account) and account.credit + account.room < needed

    def exceeded(self, account: _Account) -> EgressBudgetExceeded:
        """The refusal for an account whose budget has ended."""
        self._metrics.egress_refused.labels(account.subject.kind).inc()
        now = self.now()
        ends = month_end(datetime.fromtimestamp(now, UTC)).timestamp()
        return EgressBudgetExceeded(
            retry_after=int(ends - now) + 1,
            redirectable=self._settings.over_budget == "redirect",
        )

    # Credit.

    async def _admit(self, charge: Charge, needed: int, open_end: bool) -> None:
        accounts = self.accounts_of(charge)
        known = [a for a in accounts if a.generation >= 0 and not a.exempt]
        stale = [account for account in known if not self._is_fresh(account)]
        if stale:
            await self._compare(stale)
            accounts = self.accounts_of(charge)
        least = 1 if open_end else needed
        believed_since = time.monotonic() - ASKED_AGAIN_SECONDS
        for account in accounts:
            if account.checked_at > believed_since and self.lacks(account, least):
                raise self.exceeded(account)
        short = {}
        for account in accounts:
            start = min(needed, START_BYTES)
            enough = needed if self._limits(account) else start
            if not account.exempt and (account.credit < enough or account.generation < 0):
                short[account] = start
        if short:
            await self.take_credit(short)
        for account in self.accounts_of(charge):
            if self.lacks(account, least):
                raise self.exceeded(account)

    async def _compare(self, accounts: Collection[_Account]) -> None:
        """Learn what their budgets are by now."""
        generation = self._generation
        subjects = [account.subject for account in accounts]
        standings = await to_thread.run_sync(self._ledger.look_up, subjects)
        for account in accounts:
            self._learn(account, standings.get(account.subject), generation)

    async def _turn(self) -> None:
        """Wait for a transaction that begins after this."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._start_work()
        await future

    def _start_work(self) -> None:
        if self._working is None:
            # No context of ours: the work is for several requests, and no line of it is this one's.
            loop = asyncio.get_running_loop()
            self._working = loop.create_task(self._work(), context=Context())

    async def _work(self) -> None:
        """One transaction after the other, as long as there is something to do."""
        try:
            while self._waiting or self._asked or self._flush_due:
                waiting, self._waiting = self._waiting, []
                try:
                    await self._transact()
                except Exception as error:
                    if not isinstance(error, OnApiError):
                        logger.exception("a transaction of the meter failed")
                    for future in waiting:
                        if not future.done():  # whoever waits may be gone
                            future.set_exception(DatabaseUnavailable())
                else:
                    for future in waiting:
                        if not future.done():
                            future.set_result(None)
        finally:
            self._working = None
            for future in self._waiting:
                future.cancel()  # the process ends

    async def _transact(self) -> None:
        asked = {account: account.asked for account in self._asked}
        self._asked = set()
        for account in asked:
            account.asked = 0
        if self._flush_due:
            self._flush_due = False
            if self._pending is None:
                self._pending = self._gather(asked)
        try:
            await self._sync(asked)
        except OnApiError:
            raise
        except Exception:
            # Counting must go on: what can't be written as it is, is written without its detail.
            if self._pending is None:
                raise
            logger.exception("what went out can't be written in detail")
            self._pending = replace(self._pending, flush=_without_detail(self._pending.flush))
            await self._sync(asked)

    async def _sync(self, asked: Mapping[_Account, int]) -> None:
        pending, generation = self._pending, self._generation
        accounts = {*asked, *(pending.accounts if pending is not None else ())}
        now = time.monotonic()
        positions = []
        for account in accounts:
            needed = wanted = 0
            if account in asked:
                needed = max(0, asked[account] - account.credit)
                wanted = max(needed, account.next_slice(now))
            held = account.credit + account.used
            positions.append(Position(account.subject, held, needed, wanted))
        flush = None if pending is None else pending.flush
        synced = await to_thread.run_sync(self._ledger.sync, self._process_id, positions, flush)
        self._pending = None
        for account in accounts:
            standing = synced.standings.get(account.subject)
            self._learn(account, standing, generation)
            if standing is not None:
                account.credit += standing.granted
                account.idle = account.idle and not standing.granted
                account.low = account.credit // 2

    def _learn(self, account: _Account, standing: Standing | None, generation: int) -> None:
        account.generation = generation
        account.checked_at = time.monotonic()
        account.exempt = standing is None
        if standing is None:
            account.credit = _UNLIMITED
        else:
            account.budget, account.room = standing.budget, standing.room

    # What was counted.

    def _gather(self, asked: Collection[_Account]) -> _Pending:
        """All that was counted since the last time, as a flush; idle credit is given back."""
        counted: list[Sums] = []
        for key, row in list(self._rows.items()):
            if row.requests or row.bytes_out or row.bytes_in:
                counted.append(self._take_out(row))
            if not row.tickets:
                del self._rows[key]
        settled: dict[Subject, int] = {}
        changed: set[_Account] = set()
        for account in self._all_accounts():
            is_past = account.subject.month != self._month
            if account.used and not account.exempt:
                settled[account.subject] = account.used
                changed.add(account)
            account.used = 0
            unwanted = account.idle or is_past or self._closing
            if account.credit and unwanted and not account.exempt and account not in asked:
                account.room += account.credit
                account.credit = 0
                changed.add(account)
            account.idle = True
        self._forget_unused({*asked, *changed})
        self._flushes += 1
        return _Pending(Flush(self._flushes, counted, settled), frozenset(changed))

    def _take_out(self, row: _Row) -> Sums:
        sums = Sums(
            row.period,
            row.charge,
            row.requests,
            row.unchanged,
            row.failed,
            row.bytes_out,
            row.bytes_in,
        )
        row.requests = row.unchanged = row.failed = row.bytes_out = row.bytes_in = 0
        kind = row.charge.kind.value
        self._metrics.traffic_requests.labels(kind).inc(sums.requests)
        self._metrics.egress_bytes.labels(kind).inc(sums.bytes_out)
        self._metrics.ingress_bytes.labels(kind).inc(sums.bytes_in)
        return sums

    def _forget_unused(self, in_work: Collection[_Account]) -> None:
        # One object for each account at any time: two would each write what it alone holds.
        busy = {*in_work, *self._asked}
        self._accounts = {
            key: account
            for key, account in self._accounts.items()
            if not account.unused or account in busy
        }
        self._past = [a for a in self._past if not a.unused or a in busy]

    def _turn_page(self, now: float) -> None:
        hour = int(now) // 3600
        self._hour = datetime.fromtimestamp(hour * 3600, UTC)
        self.hour_ends = (hour + 1) * 3600.0
        month = self._hour.strftime("%Y-%m")
        if month != self._month:
            self._month = month
            self._past.extend(self._accounts.values())
            self._accounts = {}

    def _account(self, kind: str, subject_id: uuid.UUID) -> _Account:
        account = self._accounts.get((kind, subject_id))
        if account is None:
            account = _Account(Subject(kind, subject_id, self._month))
            self._accounts[kind, subject_id] = account
        return account

    def _all_accounts(self) -> Iterable[_Account]:
        return [*self._accounts.values(), *self._past]

    def _has_news(self) -> bool:
        return any(
            row.requests or row.bytes_out or row.bytes_in for row in self._rows.values()
        ) or any(account.holds for account in self._all_accounts())

    def _limits(self, account: _Account) -> bool:
        return self._bounded and account.budget is not None and not account.exempt

    def _is_fresh(self, account: _Account) -> bool:
        return account.generation == self._generation and self._invalidations.trusted

    def _distrust(self) -> None:
        self._generation += 1

    def _open_credit(self) -> float:
        return sum(
            a.credit + a.used for a in list(self._accounts.values()) if a.subject.kind == INSTANCE
        )


def _without_detail(flush: Flush) -> Flush:
    return replace(
        flush,
        counted=[
            replace(sums, charge=Charge(Kind.UNATTRIBUTED, sums.charge.owner_id))
            for sums in flush.counted
        ],
    )


def month_end(moment: datetime) -> datetime:
    """The first moment of the next calendar month in UTC."""
    year, month = (moment.year + 1, 1) if moment.month == 12 else (moment.year, moment.month + 1)
    return datetime(year, month, 1, tzinfo=UTC)
