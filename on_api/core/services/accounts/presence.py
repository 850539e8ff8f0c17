"""Presence of this process and the master secrets that it has, recorded in the database, so that a
rotation of the secret knows which processes to wait for.

It looks for other secrets at each cache invalidation, and every few seconds.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from on_api.core.crypto.secrets import Keyring
from on_api.core.errors import OnApiError
from on_api.core.models import Database, Process
from on_api.core.models.database import database_now, moment_of, new_id
from on_api.core.models.invalidation import Invalidations
from on_api.core.models.process import HOST_LENGTH
from on_api.core.services.accounts.master_secret import learn_version_in_use

logger = logging.getLogger(__name__)

BEAT_SECONDS = 15.0
DEAD_AFTER = timedelta(seconds=45)
"""Time without a sign of life after which a process counts as dead, by the database's clock."""
FORGOTTEN_AFTER = timedelta(days=1)


class Presence:
    """Thread that records this process in the database until it stops."""

    def __init__(self, database: Database, keyring: Keyring, invalidations: Invalidations) -> None:
        self._database = database
        self._keyring = keyring
        self._id = new_id()
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        invalidations.subscribe(self._due.set)

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="on-api-presence", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and delete the process's row."""
        if self._thread is None:
            return
        self._stopping.set()
        self._due.set()
        self._thread.join()
        with suppress(OnApiError), self._database.session_scope() as session:
            session.execute(delete(Process).where(Process.id == self._id))

    def _run(self) -> None:
        shown: object = None
        shown_at = float("-inf")
        lacked = False
        while not self._stopping.is_set():
            try:
                has = self._look()
                if has != shown or time.monotonic() - shown_at >= BEAT_SECONDS:
                    self._tell()
                    shown, shown_at = has, time.monotonic()
                if self._keyring.lacks_the_one_in_use and not lacked:
                    logger.error(
                        "the master secret that is in use is not available to this process"
                    )
                lacked = self._keyring.lacks_the_one_in_use
            except OnApiError as error:
                logger.warning("could not register this process in the database: %s", error.details)
            except Exception:
                logger.exception("could not register this process in the database")
            self._due.wait(max(0.0, shown_at + BEAT_SECONDS - time.monotonic()) or BEAT_SECONDS)
            # Cleared before the next look: an invalidation in between must not be missed.
            self._due.clear()

    def _look(self) -> object:
        self._keyring.refresh()
        with self._database.session_scope(write=False) as session:
            learn_version_in_use(session, self._keyring)
        return self._keyring.version, tuple(self._keyring.versions)

    def _tell(self) -> None:
        has_any = self._keyring.problem is None
        with self._database.session_scope() as session:
            now = moment_of(session)
            session.execute(delete(Process).where(Process.seen_at < now - FORGOTTEN_AFTER))
            session.merge(
                Process(
                    id=self._id,
                    host=socket.gethostname()[:HOST_LENGTH],
                    pid=os.getpid(),
                    seen_at=now,
                    used_version=self._keyring.version if has_any else None,
                    secret_versions=list(self._keyring.versions) if has_any else [],
                )
            )


def live_processes(session: Session) -> Sequence[Process]:
    """Return the processes that are up."""
    return session.scalars(
        select(Process)
        .where(Process.seen_at > database_now(-DEAD_AFTER))
        .order_by(Process.host, Process.pid)
    ).all()
