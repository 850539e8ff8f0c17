"""The growing pause after wrong passwords, across all processes, for everything that a password
protects: an account, a link, a private file.

Tries are counted by subject *and* network (an address; of IPv6 its /64), so that a stranger who
guesses is paused alone: the owner's right password works at once from another address. Guessing
from very many addresses is slowed down across all of them: after `GUESSES_PER_PAUSE` times the
allowed failures within `MEMORY_OF_ALL` one try in `PAUSE_OF_ALL` is allowed, which is the longest
that other clients have to wait; networks that have sent the right password before do not wait for
that either.
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
from on_api.core.server_settings import AuthSettings
from on_api.core.services.accounts.scrypt_pool import Asker

LONGEST_PAUSE_SECONDS = 3600.0
"""Seconds of the longest pause for one network."""
GUESSES_PER_PAUSE = 20
PAUSE_OF_ALL = timedelta(seconds=2)
MEMORY_OF_ALL = timedelta(hours=1)
MEMORY = timedelta(days=1)
"""Time after the last wrong password until wrong ones are forgotten."""
MEMORY_OF_RIGHT = timedelta(days=90)
"""Time for which a network that has sent the right password stays known."""
KNOWN_PAIRS = 10_000
"""Pairs of subject and network with a right password that this process remembers."""


class Throttle:
    """Counter of tries. Thread-safe; each call is a transaction of its own."""

    def __init__(self, database: Database, settings: AuthSettings) -> None:
        self._database = database
        self._settings = settings
        self._lock = threading.Lock()
        self._right: OrderedDict[tuple[str, str], None] = OrderedDict()

    def asker(self, subject: str, address: str | None) -> Asker:
        """Return the asker for a try without a key: known if the right password for this subject
        has come from that network to this process before."""
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
        """Count one check of a password, which is all that the block does; it raises `wrong` for a
        wrong one. The try is counted before the check, so that simultaneous tries can't slip
        through, and forgiven when the password was right. Other failures say nothing about the
        password and do not count.

        `known_as`: the subject passed to `asker`, where it differs. Raises `TooManyRequests` during
        a pause.
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
        """Count a try. Returns the end of the pause that it begins, or None."""
        with self._database.session_scope(write=False) as session:
            now = moment_of(session)
            # Refused first by reading alone: most tries during a pause then need no writer's turn.
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
            # A pause that other tries have begun stays, unless they needed this one for it.
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
            # Other networks' tries stay counted: a login of the owner must not give a guesser a new
            # start.
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
    """Delete rows that no longer affect any try."""
    now, row = moment_of(session), PasswordThrottle
    session.execute(
        delete(row).where(
            row.updated_at < now - MEMORY,
            or_(row.right_at.is_(None), row.right_at < now - MEMORY_OF_RIGHT),
        )
    )


def touch(session: Session, subject: str, network: str) -> None:
    """Lock a row without changing it; inserted if missing."""
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
        raise TooManyRequests(
            "Too many attempts with a wrong password; try again later.", retry_after=seconds
        )
