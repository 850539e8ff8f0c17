"""The growing pause after wrong passwords, over all processes, for whatever a password protects: an
account, a link, a private file.

Tries are counted by subject *and* network (an address; of IPv6 its /64), so that a stranger who
guesses makes a pause for themselves and for nobody else: the owner's right password works at once
from another address. Who guesses from very many addresses is slowed down over all of them: after
`GUESSES_PER_PAUSE` times the allowed failures within `MEMORY_OF_ALL` there is one try in
`PAUSE_OF_ALL`, which is the longest that anybody else has to wait; networks from which the right
password has come before don't wait for that either.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from on_api.core.backoff import Backoff
from on_api.core.errors import OnApiError, TooManyRequests
from on_api.core.models import Database, PasswordThrottle
from on_api.core.models.database import insert_or_lock, moment_of
from on_api.core.models.throttle import EVERYWHERE
from on_api.core.services.accounts.scrypt_pool import Asker
from on_api.core.setting_groups import AuthSettings

LONGEST_PAUSE_SECONDS = 3600.0
"""For one network."""
GUESSES_PER_PAUSE = 20
PAUSE_OF_ALL = timedelta(seconds=2)
MEMORY_OF_ALL = timedelta(hours=1)
MEMORY = timedelta(days=1)
"""Wrong passwords are forgotten so long after the last one."""
MEMORY_OF_RIGHT = timedelta(days=90)
"""A network from which the right password came is known so long after that."""
KNOWN_PAIRS = 10_000
"""Of those who were right, in this process's memory."""


class Throttle:
    """Counts tries. Thread-safe; each call is a transaction of its own."""

    def __init__(self, database: Database, settings: AuthSettings) -> None:
        self._database = database
        self._settings = settings
        self._lock = threading.Lock()
        self._right: OrderedDict[tuple[str, str], None] = OrderedDict()

    def asker(self, subject: str, address: str | None) -> Asker:
        """Who tries a password for a subject without a key: known if the right one has come from
        that network to this process before."""
        stranger = Asker.stranger(address)
        with self._lock:
            is_known = (subject, stranger.network) in self._right
        return Asker.trusted(subject, address) if is_known else stranger

    @contextmanager
    def one_try(
        self,
        subject: str,
        network: str,
        *,
        wrong: type[OnApiError],
        known_as: str | None = None,
    ) -> Iterator[None]:
        """Around one look at a password, and nothing else, which raises `wrong` for a wrong one. It
        is counted before it is made, so many at once can't slip through together, and forgiven when
        it was right; what fails in another way says nothing about the password, and doesn't count.

        `known_as`: the subject that `asker` is asked for, where it is another one. Raises
        `TooManyRequests` during a pause.
        """
        paused_until = self._count(subject, network)
        try:
            yield
        except wrong:
            raise
        except BaseException:
            with suppress(OnApiError):  # the first error is the one to tell
                self._take_back(subject, network, paused_until)
            raise
        self._forgive(subject, network, known_as or subject)

    def _count(self, subject: str, network: str) -> datetime | None:
        """Returns the end of the pause that this try begins, if it does."""
        with self._database.session_scope(write=False) as session:
            now = moment_of(session)
            # Most of those who go on in spite of a pause need no writer's turn.
            rows = session.scalars(
                select(PasswordThrottle).where(
                    PasswordThrottle.subject == subject,
                    PasswordThrottle.network.in_([EVERYWHERE, network]),
                )
            ).all()
            by_network = {row.network: row for row in rows}
        self._refuse(by_network.get(EVERYWHERE), by_network.get(network), now)
        with self._database.session_scope() as session:
            now = moment_of(session)
            everywhere, here = (
                _lock(session, subject, place, now) for place in (EVERYWHERE, network)
            )
            self._refuse(everywhere, here, now)
            here.failures += 1
            over = here.failures - self._settings.failures_allowed
            if over >= 0:
                backoff = Backoff(self._settings.failure_pause, LONGEST_PAUSE_SECONDS)
                here.blocked_until = now + timedelta(seconds=backoff.pause(over + 1))
            if everywhere.updated_at < now - MEMORY_OF_ALL:
                everywhere.failures = 0
            everywhere.failures += 1
            if self._is_attacked(everywhere):
                everywhere.blocked_until = now + PAUSE_OF_ALL
            here.updated_at = everywhere.updated_at = now
            return here.blocked_until if over >= 0 else None

    def _take_back(self, subject: str, network: str, paused_until: datetime | None) -> None:
        with self._database.session_scope() as session:
            now = moment_of(session)
            everywhere, here = (
                _lock(session, subject, place, now) for place in (EVERYWHERE, network)
            )
            for row in (everywhere, here):
                row.failures = max(0, row.failures - 1)
            # A pause that others have begun stays, unless they had needed this try for it.
            allowed = here.failures < self._settings.failures_allowed
            if allowed or here.blocked_until == paused_until:
                here.blocked_until = None

    def _forgive(self, subject: str, network: str, known_as: str) -> None:
        with self._database.session_scope() as session:
            now = moment_of(session)
            everywhere, here = (
                _lock(session, subject, place, now) for place in (EVERYWHERE, network)
            )
            here.failures, here.blocked_until, here.right_at = 0, None, now
            # The others' tries stay: who guesses must not begin anew whenever the owner comes.
            everywhere.failures = max(0, everywhere.failures - 1)
            here.updated_at = now
        with self._lock:
            self._right[known_as, network] = None
            self._right.move_to_end((known_as, network))
            while len(self._right) > KNOWN_PAIRS:
                self._right.popitem(last=False)

    def _refuse(
        self, everywhere: PasswordThrottle | None, here: PasswordThrottle | None, now: datetime
    ) -> None:
        _refuse_during_pause(here, now)
        is_known = here is not None and here.right_at is not None
        if everywhere is not None and self._is_attacked(everywhere) and not is_known:
            _refuse_during_pause(everywhere, now)

    def _is_attacked(self, everywhere: PasswordThrottle) -> bool:
        return everywhere.failures >= GUESSES_PER_PAUSE * self._settings.failures_allowed


def forget_old_throttles(session: Session) -> None:
    """Delete what nobody runs into any more."""
    now, row = moment_of(session), PasswordThrottle
    session.execute(
        delete(row).where(
            row.updated_at < now - MEMORY,
            or_(row.right_at.is_(None), row.right_at < now - MEMORY_OF_RIGHT),
        )
    )


def touch(session: Session, subject: str, network: str) -> None:
    """Write what is there already."""
    _lock(session, subject, network, moment_of(session))


def _lock(session: Session, subject: str, network: str, now: datetime) -> PasswordThrottle:
    return insert_or_lock(
        session,
        PasswordThrottle,
        ["subject", "network"],
        subject=subject,
        network=network,
        failures=0,
        updated_at=now,
    )


def _refuse_during_pause(row: PasswordThrottle | None, now: datetime) -> None:
    if row is not None and row.blocked_until is not None and row.blocked_until > now:
        seconds = int((row.blocked_until - now).total_seconds()) + 1
        raise TooManyRequests("Too many wrong passwords; try again later.", retry_after=seconds)
