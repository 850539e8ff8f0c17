"""The housekeeping thread: removes deleted accounts, expired logins and old throttles, merges old
traffic, and counts what is kept."""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy import delete

from on_api.core.errors import OnApiError
from on_api.core.models import ApiKey, Database
from on_api.core.models.database import database_now
from on_api.core.models.invalidation import Invalidations
from on_api.core.models.key import TOKEN
from on_api.core.services.accounts.idempotency import forget_old_answers
from on_api.core.services.accounts.throttling import forget_old_throttles
from on_api.core.services.shared.events import forget_old_events
from on_api.core.services.traffic.upkeep import keep_traffic
from on_api.core.services.upkeep.census import take_census_when_due
from on_api.core.setting_groups import TrafficSettings
from on_api.worker.removal import remove_deleted_accounts

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 60
AGAIN_SECONDS = 5
"""Seconds until a removal that could not be completed is tried again."""


class Housekeeper:
    """Thread that works once at the start, every minute, and soon after each cache
    invalidation."""

    def __init__(
        self, database: Database, invalidations: Invalidations, traffic: TrafficSettings
    ) -> None:
        self._database = database
        self._traffic = traffic
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="on-api-housekeeper", daemon=True)
        invalidations.subscribe(self._due.set)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after its current piece of work."""
        self._stopping.set()
        self._due.set()
        self._thread.join()

    def _run(self) -> None:
        swept_at = float("-inf")
        while not self._stopping.is_set():
            is_done = False
            try:
                is_done = remove_deleted_accounts(self._database)
                if time.monotonic() - swept_at >= PERIOD_SECONDS:
                    remove_what_has_ended(self._database)
                    keep_traffic(self._database, self._traffic)
                    swept_at = time.monotonic()
                    take_census_when_due(self._database)
            except OnApiError as error:
                logger.warning("housekeeping is postponed: %s", error.details)
            except Exception:
                logger.exception("housekeeping failed")
            self._due.wait(PERIOD_SECONDS if is_done else AGAIN_SECONDS)
            # Before the check of `_stopping`: after it, a `stop` in between would be slept through.
            self._due.clear()


def remove_what_has_ended(database: Database) -> None:
    """Delete expired logins and old answers, events and throttles."""
    with database.session_scope() as session:
        session.execute(
            delete(ApiKey).where(ApiKey.kind == TOKEN, ApiKey.expires_at < database_now())
        )
        forget_old_answers(session)
        forget_old_events(session)
        forget_old_throttles(session)
