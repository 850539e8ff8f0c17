"""Credit of one process: bytes that it has taken from accounts in the database and not yet reported
as used.

All of it runs on one event loop; only `EgressLedger`'s transactions run in threads, one after the
other: calls that come meanwhile share the next one. Knows nothing of answers and of what they are
counted for.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, replace

from anyio import to_thread

from on_api.core.errors import DatabaseUnavailable, OnApiError
from on_api.core.models.database import new_id
from on_api.core.models.invalidation import Invalidations
from on_api.core.models.traffic import INSTANCE
from on_api.core.services.traffic.egress import (
    AccountState,
    CreditRequest,
    EgressLedger,
    Flush,
    Subject,
)
from on_api.core.services.traffic.sums import Charge, Kind, Sums
from on_api.core.setting_groups import MIB

logger = logging.getLogger(__name__)

FIRST_SLICE_BYTES = 1 * MIB
LARGEST_SLICE_BYTES = 64 * MIB
QUICK_SECONDS = 1.0
"""A slice used up in fewer seconds doubles the next one."""
SLOW_SECONDS = 8.0
"""A slice that lasts more seconds halves the next one."""
REMEMBERED_SECONDS = 60.0
"""Seconds after which a budget is read again even without a cache invalidation."""

_UNLIMITED_BYTES = 2**62


class Account:
    """Credit of one subject in memory. `room`: bytes that the budget left beyond it when last
    read."""

    __slots__ = (
        "asked",
        "budget",
        "checked_at",
        "credit",
        "doubtful",
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
        """True for a key without a budget of its own: nothing is counted."""
        self.generation = -1
        """`Credit._generation` when it was last compared with the database; -1: never."""
        self.checked_at = float("-inf")
        self.low = 0
        """The next slice is fetched once credit is below this number of bytes."""
        self.slice = FIRST_SLICE_BYTES
        self.taken_at = float("-inf")
        self.idle = False
        self.doubtful = False
        """True while a transaction is unconfirmed: the database may have more credit open than we
        know."""
        self.tickets = 0

    def next_slice(self, now: float) -> int:
        """Return the bytes to take now (monotonic time), by how long the last slice has lasted."""
        if now - self.taken_at < QUICK_SECONDS:
            return min(2 * self.slice, LARGEST_SLICE_BYTES)
        if now - self.taken_at > SLOW_SECONDS:
            return max(self.slice // 2, FIRST_SLICE_BYTES)
        return self.slice

    @property
    def holds(self) -> bool:
        """True if it has credit open in the database."""
        return not self.exempt and bool(self.credit or self.used or self.doubtful)

    @property
    def unused(self) -> bool:
        """True if it holds no credit and has no open ticket."""
        return not (self.holds or self.tickets)


@dataclass(frozen=True, slots=True)
class _Pending:
    """Flush that may have been written, and the accounts that it settles."""

    flush: Flush
    accounts: frozenset[Account]


class Credit:
    """Accounts of the present month, and of past ones until they are settled.

    `take_counted` returns all that was counted since its last call. `bounded`: budgets are
    enforced; else they are only reported.
    """

    def __init__(
        self,
        ledger: EgressLedger,
        invalidations: Invalidations,
        take_counted: Callable[[], list[Sums]],
        *,
        bounded: bool,
    ) -> None:
        self._ledger = ledger
        self._invalidations = invalidations
        self._take_counted = take_counted
        self._bounded = bounded
        self._generation = 0
        self._process_id = new_id()
        self._flushes = 0
        self._month = ""
        self._accounts: dict[tuple[str, uuid.UUID], Account] = {}
        self._past: list[Account] = []
        """Accounts of past months, with credit to give back or use to settle."""
        self._asked: set[Account] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._pending: _Pending | None = None
        self._flush_due = False
        self._closing = False
        self._working: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        invalidations.subscribe(self._distrust)

    @property
    def unsettled(self) -> bool:
        """True if the database has not been told everything yet."""
        return self._pending is not None or any(a.holds for a in self._all_accounts())

    @property
    def open_bytes(self) -> int:
        """Open bytes of this process in the instance's account. May be read from any thread."""
        accounts = list(self._accounts.values())
        return sum(a.credit + a.used for a in accounts if a.subject.kind == INSTANCE)

    def begin_month(self, month: str) -> None:
        """Count on the accounts of `month` (`2026-11`) from now on."""
        self._month = month
        self._past.extend(self._accounts.values())
        self._accounts = {}

    def account(self, kind: str, subject_id: uuid.UUID) -> Account:
        """Return an account of the present month; made if missing."""
        account = self._accounts.get((kind, subject_id))
        if account is None:
            account = Account(Subject(kind, subject_id, self._month))
            self._accounts[kind, subject_id] = account
        return account

    def limits(self, account: Account) -> bool:
        """Return whether the account's budget can end answers."""
        return self._bounded and account.budget is not None and not account.exempt

    def is_fresh(self, account: Account) -> bool:
        """Return whether the account's budget is known and up to date."""
        return self.are_fresh((account,))

    def are_fresh(self, accounts: Iterable[Account]) -> bool:
        """Return whether the budgets of all accounts that have one are known and up to date."""
        if not self._invalidations.trusted:
            return False
        generation, oldest = self._generation, time.monotonic() - REMEMBERED_SECONDS
        for account in accounts:
            is_known = account.generation == generation and account.checked_at > oldest
            if not is_known and not account.exempt:
                return False
        return True

    def spend(self, accounts: Sequence[Account], n: int) -> bool:
        """Count `n` bytes on each account. Returns False, counting nothing, if one is short of
        credit."""
        for account in accounts:
            if account.credit < n:
                return False
        for account in accounts:
            account.credit -= n
            account.used += n
            account.idle = False
            if account.credit < account.low:
                self._fetch_ahead(account)
        return True

    def _fetch_ahead(self, account: Account) -> None:
        """Fetch the next slice before the present one is used up."""
        if account.exempt or account in self._asked:
            return
        if self.limits(account) and account.room <= 0:
            return
        self._asked.add(account)
        self._start_work()

    async def take(self, short: Mapping[Account, int]) -> None:
        """Take credit, `short` bytes by account, in the next transaction. Raises
        `DatabaseUnavailable`."""
        for account, needed in short.items():
            account.asked += needed
            self._asked.add(account)
        await self._turn()

    def lacks(self, account: Account, needed: int) -> bool:
        """Return whether the budget leaves less than `needed` bytes, open credit included."""
        return self.limits(account) and account.credit + account.room < needed

    async def compare(self, accounts: Collection[Account]) -> None:
        """Read the budgets of accounts again.

        Never while a transaction runs: credit that it is returning would be missing both here and
        in the database as read, and a budget would seem to be used up.
        """
        async with self._one_at_a_time:
            generation = self._generation
            subjects = [account.subject for account in accounts]
            states = await to_thread.run_sync(self._ledger.look_up, subjects)
            for account in accounts:
                self._learn(account, states.get(account.subject), generation)

    def flush_soon(self) -> None:
        """Write what was counted without waiting for the next flush."""
        if not self._flush_due:
            self._flush_due = True
            self._start_work()

    async def flush(self, *, closing: bool = False) -> None:
        """Write what was counted, and return credit that was idle since the last flush; all of it
        when the process is `closing`. Raises `DatabaseUnavailable`."""
        self._closing = self._closing or closing
        self._flush_due = True
        await self._turn()

    async def _turn(self) -> None:
        """Wait for a transaction that begins after this call."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._start_work()
        await future

    def _start_work(self) -> None:
        if self._working is None:
            # Without this request's context: the work is for several requests.
            loop = asyncio.get_running_loop()
            self._working = loop.create_task(self._work(), context=Context())

    async def _work(self) -> None:
        """Run transactions one after the other while there is work."""
        try:
            while self._waiting or self._asked or self._flush_due:
                waiting, self._waiting = self._waiting, []
                try:
                    async with self._one_at_a_time:
                        await self._transact()
                except Exception as error:
                    if not isinstance(error, OnApiError):
                        logger.exception("a transaction of traffic accounting failed")
                    for future in waiting:
                        if not future.done():  # the waiter may be gone
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
        for account in asked:
            account.doubtful = True
        try:
            await self._sync(asked)
        except OnApiError:
            raise
        except Exception:
            # Counting must go on: a flush that can't be written is written without its detail.
            if self._pending is None:
                raise
            logger.exception(
                "traffic counts can't be written in detail; only totals will be written"
            )
            self._pending = replace(self._pending, flush=_without_detail(self._pending.flush))
            await self._sync(asked)

    async def _sync(self, asked: Mapping[Account, int]) -> None:
        pending, generation = self._pending, self._generation
        accounts = {*asked, *(pending.accounts if pending is not None else ())}
        now = time.monotonic()
        requests = []
        for account in accounts:
            needed = wanted = 0
            if account in asked:
                needed = max(0, asked[account] - account.credit)
                wanted = max(needed, account.next_slice(now))
            held = account.credit + account.used
            requests.append(CreditRequest(account.subject, held, needed, wanted))
        flush = None if pending is None else pending.flush
        synced = await to_thread.run_sync(self._ledger.sync, self._process_id, requests, flush)
        self._pending = None
        for account in accounts:
            state = synced.states.get(account.subject)
            account.doubtful = False
            self._learn(account, state, generation)
            if state is not None:
                account.credit += state.granted
                account.low = account.credit // 2
                if account in asked:
                    account.slice, account.taken_at = account.next_slice(now), now
                    account.idle = False

    def _learn(self, account: Account, state: AccountState | None, generation: int) -> None:
        account.generation = generation
        account.checked_at = time.monotonic()
        account.exempt = state is None
        if state is None:
            account.credit = _UNLIMITED_BYTES
        else:
            account.budget, account.room = state.budget, state.room

    def _gather(self, asked: Collection[Account]) -> _Pending:
        """Gather all that was counted since the last time as a flush, and return idle credit."""
        counted = self._take_counted()
        settled: dict[Subject, int] = {}
        changed: set[Account] = set()
        for account in self._all_accounts():
            is_past = account.subject.month != self._month
            if account.used and not account.exempt:
                settled[account.subject] = account.used
                changed.add(account)
            if account.doubtful:
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

    def _forget_unused(self, in_work: Collection[Account]) -> None:
        # Only one object may exist for each account: two would each write only their own credit.
        busy = {*in_work, *self._asked}
        self._accounts = {
            key: account
            for key, account in self._accounts.items()
            if not account.unused or account in busy
        }
        self._past = [a for a in self._past if not a.unused or a in busy]

    def _all_accounts(self) -> list[Account]:
        return [*self._accounts.values(), *self._past]

    def _distrust(self) -> None:
        self._generation += 1


def _without_detail(flush: Flush) -> Flush:
    return replace(
        flush,
        counted=[
            replace(sums, charge=Charge(Kind.UNATTRIBUTED, sums.charge.owner_id))
            for sums in flush.counted
        ],
    )
