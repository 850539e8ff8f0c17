"""The meter: counts every outgoing byte before it is sent, in memory, against credit taken from the
database (`credit.py`).

On one event loop. Counts are written every few seconds. Knows nothing of how answers are made.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

from on_api.core.errors import DatabaseUnavailable, EgressBudgetExceeded, OnApiError
from on_api.core.metrics import Metrics
from on_api.core.models.invalidation import Invalidations
from on_api.core.models.traffic import EVERYBODY, INSTANCE, KEY, OWNER
from on_api.core.services.traffic.credit import Account, Credit
from on_api.core.services.traffic.egress import EgressLedger
from on_api.core.services.traffic.sums import Charge, Kind, Sums
from on_api.core.setting_groups import TrafficSettings

__all__ = ["Charge", "Kind", "Meter", "Ticket"]

logger = logging.getLogger(__name__)

START_BYTES = 64 * 1024
"""Credit in bytes with which an answer of unknown length may begin."""
ASKED_AGAIN_SECONDS = 1.0
"""Seconds for which a used-up budget is not read again."""
PATIENCE_SECONDS = 10.0
"""Seconds that an answer which has begun waits for an unreachable database."""
RETRY_SECONDS = 0.2
MOST_SUMS = 10_000
"""Most sums in memory; beyond it they are written at once."""
LAST_SECONDS = 10.0
"""Seconds that the end of a process waits for its last flush."""


@dataclass(slots=True)
class _Row(Sums):
    """Sums that are still being counted, with the number of open tickets."""

    tickets: int = 0

    @property
    def is_counted(self) -> bool:
        """True if anything was counted."""
        return bool(self.requests or self.bytes_out or self.bytes_in)


class Ticket:
    """Count of one answer while it is sent. On the event loop only."""

    __slots__ = ("_accounts", "_charge", "_cut", "_meter", "_row", "_until")

    def __init__(self, meter: Meter, charge: Charge, accounts: list[Account]) -> None:
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
        """Count `n` bytes that are about to be sent. Returns False, counting nothing, if credit is
        short; then await `more`."""
        if self._meter.now() >= self._until:
            self._bind_anew()
        if not self._meter.credit.spend(self._accounts, n):
            return False
        if self._row is not None:
            self._row.bytes_out += n
        return True

    async def more(self, n: int) -> None:
        """Take credit, then count `n` bytes. Raises `EgressBudgetExceeded` when a budget is used
        up, `DatabaseUnavailable` when the database is unreachable for too long: the answer has to
        be cut."""
        meter, deadline = self._meter, time.monotonic() + PATIENCE_SECONDS
        while not self.take(n):
            short = {account: n for account in self._accounts if account.credit < n}
            try:
                await meter.credit.take(short)
            except DatabaseUnavailable:
                if time.monotonic() >= deadline:
                    self._cut = True
                    raise
                await asyncio.sleep(RETRY_SECONDS)
                continue
            for account in self._accounts:
                if account.credit < n and meter.credit.lacks(account, n):
                    self._cut = True
                    raise meter.exceeded(account)

    def close(self, status: int) -> None:
        """End the count of an answer: whole, aborted or failed (`status` 0: it never began). Counts
        one request; a second call does nothing."""
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
        """Move to the sums of the present hour, and to the accounts of its month."""
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
    """Meter of one process. `clock` returns seconds since 1970."""

    def __init__(
        self,
        ledger: EgressLedger,
        invalidations: Invalidations,
        settings: TrafficSettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._counters = cache(
            lambda kind: (
                metrics.traffic_requests.labels(kind),
                metrics.egress_bytes.labels(kind),
                metrics.ingress_bytes.labels(kind),
            )
        )
        self._clock = clock
        self.credit = Credit(
            ledger,
            invalidations,
            self._take_counted,
            bounded=settings.over_budget != "allow",
        )
        self._rows: dict[tuple[float, Charge], _Row] = {}
        self._month = ""
        self._hour = datetime.fromtimestamp(0, UTC)
        self.hour_ends = 0.0
        self.binding = 0
        """Version of the row and account objects; callers that cached them must look them up again
        when it changes."""
        metrics.watch(
            "on_api_egress_open_credit_bytes",
            "Bytes reserved from egress budgets and not yet recorded as sent.",
            lambda: self.credit.open_bytes,
        )

    def now(self) -> float:
        """Return the seconds since 1970; begins a new hour or month when one is over."""
        now = self._clock()
        if now >= self.hour_ends:
            self._turn_page(now)
        return now

    def try_open(self, charge: Charge, length: int | None) -> Ticket | None:
        """Begin to count an answer of `length` bytes (None: not known; 0: only its request), if
        memory alone can admit it. Otherwise returns None: await `open`."""
        self.now()
        accounts = self.accounts_of(charge)
        if length != 0:
            for account in accounts:
                if account.exempt:
                    continue
                if not self.credit.is_fresh(account):
                    return None
                limited = self.credit.limits(account)
                needed = START_BYTES if length is None else length
                if not limited:
                    needed = min(needed, START_BYTES)
                if account.credit + (min(account.room, 0) if limited else 0) < needed:
                    return None
        return Ticket(self, charge, accounts)

    async def open(self, charge: Charge, length: int | None) -> Ticket:
        """Begin to count an answer of `length` bytes (None: not known; 0: only its request, which
        is always free). Awaits nothing where memory alone can admit it.

        Raises `EgressBudgetExceeded` when a budget leaves less, `DatabaseUnavailable` when it can't
        be read.
        """
        if (ticket := self.try_open(charge, length)) is not None:
            return ticket
        if length != 0:
            await self._admit(charge, START_BYTES if length is None else length, length is None)
        return Ticket(self, charge, self.accounts_of(charge))

    def received(self, charge: Charge, size: int) -> None:
        """Count one request with `size` bytes received."""
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
                logger.warning("traffic counts will be written later: %s", error.details)
            except Exception:
                logger.exception("could not write traffic counts")

    async def flush(self) -> None:
        """Write what was counted, and return unused credit."""
        self.now()
        if self._has_news():
            await self.credit.flush()

    async def close(self) -> None:
        """Write the rest and return all credit. What can't be written stays counted, without
        detail."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                while self._has_news():
                    try:
                        await self.credit.flush(closing=True)
                    except OnApiError:
                        await asyncio.sleep(RETRY_SECONDS)
                return
        logger.warning("could not write the traffic counts of the last seconds")

    # Used by tickets.

    def accounts_of(self, charge: Charge) -> list[Account]:
        """Return the accounts that a charge counts on this month."""
        found = [self.credit.account(INSTANCE, EVERYBODY)]
        if charge.owner_id is not None:
            found.append(self.credit.account(OWNER, charge.owner_id))
        if charge.key_id is not None:
            found.append(self.credit.account(KEY, charge.key_id))
        return found

    def row_of(self, charge: Charge) -> _Row:
        """Return the sums of a charge in this hour."""
        key = (self.hour_ends, charge)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = _Row(self._hour, charge)
            if len(self._rows) > MOST_SUMS:
                self.credit.flush_soon()
        return row

    def exceeded(self, account: Account) -> EgressBudgetExceeded:
        """Return the refusal for an account whose budget is used up, and count it in the
        metrics."""
        self._metrics.egress_refused.labels(account.subject.kind).inc()
        now = self.now()
        ends = month_end(datetime.fromtimestamp(now, UTC)).timestamp()
        return EgressBudgetExceeded(
            retry_after=int(ends - now) + 1,
            redirectable=self._settings.over_budget == "redirect",
        )

    async def _admit(self, charge: Charge, needed: int, open_end: bool) -> None:
        accounts = self.accounts_of(charge)
        known = [a for a in accounts if a.generation >= 0 and not a.exempt]
        stale = [account for account in known if not self.credit.is_fresh(account)]
        if stale:
            await self.credit.compare(stale)
            accounts = self.accounts_of(charge)
        least = 1 if open_end else needed
        believed_since = time.monotonic() - ASKED_AGAIN_SECONDS
        for account in accounts:
            if account.checked_at > believed_since and self.credit.lacks(account, least):
                raise self.exceeded(account)
        short = {}
        for account in accounts:
            start = min(needed, START_BYTES)
            enough = needed if self.credit.limits(account) else start
            if not account.exempt and (account.credit < enough or account.generation < 0):
                short[account] = start
        if short:
            await self.credit.take(short)
        for account in self.accounts_of(charge):
            if self.credit.lacks(account, least):
                raise self.exceeded(account)

    def _take_counted(self) -> list[Sums]:
        self.binding += 1  # accounts are dropped right after it
        counted = []
        for key, row in list(self._rows.items()):
            if row.is_counted:
                counted.append(self._take_out(row))
            if not row.tickets:
                del self._rows[key]
        return counted

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
        requests, egress, ingress = self._counters(row.charge.kind.value)
        requests.inc(sums.requests)
        egress.inc(sums.bytes_out)
        ingress.inc(sums.bytes_in)
        return sums

    def _turn_page(self, now: float) -> None:
        self.binding += 1
        hour = int(now) // 3600
        self._hour = datetime.fromtimestamp(hour * 3600, UTC)
        self.hour_ends = (hour + 1) * 3600.0
        month = self._hour.strftime("%Y-%m")
        if month != self._month:
            self._month = month
            self.credit.begin_month(month)

    def _has_news(self) -> bool:
        return self.credit.unsettled or any(row.is_counted for row in self._rows.values())


def month_end(moment: datetime) -> datetime:
    """Return the first moment of the next calendar month in UTC."""
    year, month = (moment.year + 1, 1) if moment.month == 12 else (moment.year, moment.month + 1)
    return datetime(year, month, 1, tzinfo=UTC)
