"""Cache of answers about single files: repeated requests need no database query.

An answer is dropped when its file's row changes or is deleted, here at commit and in other
processes by cache invalidation (`models/invalidation.py`); while invalidations can't be received,
the cache is not used. Entries are found by owner and file together, so that no user gets another's.
Knows nothing of how an answer is rendered.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection

from on_api.core.models import Database
from on_api.core.models.invalidation import Invalidations
from on_api.core.services.files.files import FileFacts, facts_of

REMEMBERED_SECONDS = 60.0
"""Seconds for which an answer is used even without an invalidation: changes to the database from
outside (a restored row, a person with SQL) announce nothing."""
ENTRY_BYTES = 500
"""Bytes that an entry costs beside its answer: keys, objects."""


class FileAnswers:
    """Cache of the answers used most recently, up to `capacity` bytes. Thread-safe."""

    def __init__(self, database: Database, invalidations: Invalidations, capacity: int) -> None:
        self._database = database
        self._invalidations = invalidations
        self._capacity = capacity
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[uuid.UUID, bytes, float]] = OrderedDict()
        self._size = 0
        self._generation = 0
        invalidations.subscribe_to_files(self._forget)

    @property
    def size(self) -> int:
        """Bytes in use."""
        return self._size

    def recall(self, user_id: uuid.UUID, file_id: str) -> bytes | None:
        """Return the cached answer about a user's file, or None. `file_id` in lower case."""
        with self._lock:
            known = self._known.get(file_id)
            if known is None:
                return None
            owner, answer, until = known
            if owner != user_id or until < time.monotonic() or not self._invalidations.trusted:
                return None
            self._known.move_to_end(file_id)
            return answer

    def look_up(
        self, user_id: uuid.UUID, file_id: uuid.UUID, render: Callable[[FileFacts], bytes]
    ) -> bytes:
        """Return the answer about a user's file from the database. Raises `NotFound`."""
        generation, until = self._generation, time.monotonic() + REMEMBERED_SECONDS
        with self._database.session_scope(write=False) as session:
            facts = facts_of(session, user_id, file_id)
        answer = render(facts)
        with self._lock:
            # A change during the look-up would otherwise leave an outdated answer in the cache.
            if generation == self._generation:
                self._keep(str(file_id), user_id, answer, until)
        return answer

    def _keep(self, file_id: str, user_id: uuid.UUID, answer: bytes, until: float) -> None:
        self._drop(file_id)
        self._known[file_id] = user_id, answer, until
        self._size += len(answer) + ENTRY_BYTES
        while self._size > self._capacity:
            self._drop(next(iter(self._known)))

    def _drop(self, file_id: str) -> None:
        if (gone := self._known.pop(file_id, None)) is not None:
            self._size -= len(gone[1]) + ENTRY_BYTES

    def _forget(self, ids: Collection[str] | None) -> None:
        with self._lock:
            self._generation += 1
            if ids is None:
                self._known.clear()
                self._size = 0
                return
            for file_id in ids:
                self._drop(file_id)
