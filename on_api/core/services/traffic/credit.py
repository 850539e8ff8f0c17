"""The credit of one process: what it has taken from accounts in the database and not yet told what
for.

All of it happens on one event loop; only `EgressLedger`'s transactions run in threads, one after
the other: who comes meanwhile shares the next one. Knows nothing of answers and of what they are
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
from on_api.core.services.traffic.egress import EgressLedger, Flush, Position, Standing, Subject
from on_api.core.services.traffic.sums import Charge, Kind, Sums
from on_api.core.setting_groups import MIB

logger = logging.getLogger(__name__)

FIRST_SLICE = 1 * MIB
LARGEST_SLICE = 64 * MIB
QUICK_SECONDS = 1.0
"""A slice used up in less doubles the next one."""
SLOW_SECONDS = 8.0
"""One that lasts longer halves it."""
REMEMBERED_SECONDS = 60.0
"""A budget is looked at anew so often even if no news came."""

_UNLIMITED = 2**62


class Account:
    """Credit of one subject in memory. `room`: what the budget left beyond it when last seen."""

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
        """A key without a budget of its own: nothing is counted."""
        self.generation = -1
        """The state of news when it was last compared with the database; -1: never."""
        self.checked_at = float("-inf")
        self.low = 0
        """With less credit the next slice is fetched."""
        self.slice = FIRST_SLICE
        self.taken_at = float("-inf")
        self.idle = False
        self.doubtful = False
        """A transaction went unanswered: the database may have more open for it than we know."""
        self.tickets = 0

    def next_slice(self, now: float) -> int:
        """How much to take at this moment (monotonic), by how long the slice before has lasted."""
        if now - self.taken_at < QUICK_SECONDS:
            return min(2 * self.slice, LARGEST_SLICE)
        if now - self.taken_at > SLOW_SECONDS:
            return max(self.slice // 2, FIRST_SLICE)
        return self.slice

    @property
    def holds(self) -> bool:
        """Whether it has something open in the database."""
        return not self.exempt and bool(self.credit or self.used or self.doubtful)

    @property
    def unused(self) -> bool:
        """Whether nobody would miss it."""
        return not (self.holds or self.tickets)


@dataclass(frozen=True, slots=True)
class _Pending:
    """A flush that may have been written, and whose accounts it settles."""

    flush: Flush
    accounts: frozenset[Account]


class Credit:
    """Accounts of the present month, and of past ones until they are settled.

    `take_counted` hands over all that was counted since it was last asked. With `bounded` budgets
    are kept; else they only tell.
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
        """Of months that are over, with credit to give back or use to settle."""
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
        """Whether the database is still to be told something."""
        return self._pending is not None or any(a.holds for a in self._all_accounts())

    @property
    def open_bytes(self) -> int:
        """What the process has open of everybody's account. From any thread."""
        accounts = list(self._accounts.values())
        return sum(a.credit + a.used for a in accounts if a.subject.kind == INSTANCE)

    def begin_month(self, month: str) -> None:
        """Count on the accounts of `month` (`2026-11`) from now on."""
        self._month = month
        self._past.extend(self._accounts.values())
        self._accounts = {}

    def account(self, kind: str, subject_id: uuid.UUID) -> Account:
        """An account of the present month."""
        account = self._accounts.get((kind, subject_id))
        if account is None:
            account = Account(Subject(kind, subject_id, self._month))
            self._accounts[kind, subject_id] = account
        return account

    def limits(self, account: Account) -> bool:
        """Whether its budget ends answers."""
        return self._bounded and account.budget is not None and not account.exempt

    def is_fresh(self, account: Account) -> bool:
        """Whether its budget is known as it is now."""
        return self.are_fresh((account,))

    def are_fresh(self, accounts: Iterable[Account]) -> bool:
        """Whether the budgets of all that have one are known as they are now."""
        if not self._invalidations.trusted:
            return False
        generation, oldest = self._generation, time.monotonic() - REMEMBERED_SECONDS
        for account in accounts:
            is_known = account.generation == generation and account.checked_at > oldest
            if not is_known and not account.exempt:
                return False
        return True

    def spend(self, accounts: Sequence[Account], n: int) -> bool:
        """Count `n` bytes on each account. False: on one of them credit is short, and nothing was
        counted."""
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
        """Have the next slice before the present one is used up."""
        if account.exempt or account in self._asked:
            return
        if self.limits(account) and account.room <= 0:
            return
        self._asked.add(account)
        self._start_work()

    async def take(self, short: Mapping[Account, int]) -> None:
        """Ask for so many bytes of credit on each account. Raises `DatabaseUnavailable`."""
        for account, needed in short.items():
            account.asked += needed
            self._asked.add(account)
        await self._turn()

    def lacks(self, account: Account, needed: int) -> bool:
        """Whether the budget leaves less than that, open credit included."""
        return self.limits(account) and account.credit + account.room < needed

    async def compare(self, accounts: Collection[Account]) -> None:
        """Learn what their budgets are by now.

        Never while a transaction is under way: credit that it is giving back is neither here nor,
        for whoever asks the database, there, and a budget would seem to have ended.
        """
        async with self._one_at_a_time:
            generation = self._generation
            subjects = [account.subject for account in accounts]
            standings = await to_thread.run_sync(self._ledger.look_up, subjects)
            for account in accounts:
                self._learn(account, standings.get(account.subject), generation)

    def flush_soon(self) -> None:
        """Write what was counted without waiting for the next flush."""
        if not self._flush_due:
            self._flush_due = True
            self._start_work()

    async def flush(self, *, closing: bool = False) -> None:
        """Write what was counted, and give back what was idle since the flush before; all, when
        the process is `closing`. Raises `DatabaseUnavailable`."""
        self._closing = self._closing or closing
        self._flush_due = True
        await self._turn()

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
                    async with self._one_at_a_time:
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
        for account in asked:
            account.doubtful = True
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

    async def _sync(self, asked: Mapping[Account, int]) -> None:
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
            account.doubtful = False
            self._learn(account, standing, generation)
            if standing is not None:
                account.credit += standing.granted
                account.low = account.credit // 2
                if account in asked:
                    account.slice, account.taken_at = account.next_slice(now), now
                    account.idle = False

    def _learn(self, account: Account, standing: Standing | None, generation: int) -> None:
        account.generation = generation
        account.checked_at = time.monotonic()
        account.exempt = standing is None
        if standing is None:
            account.credit = _UNLIMITED
        else:
            account.budget, account.room = standing.budget, standing.room

    def _gather(self, asked: Collection[Account]) -> _Pending:
        """All that was counted since the last time, as a flush; idle credit is given back."""
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
        # One object for each account at any time: two would each write what it alone holds.
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
