"""Cache invalidation, for this process and the others.

A writer announces a change within its transaction. When that commits, subscribers of this process
are called at once; those of other processes are told by NOTIFY (PostgreSQL), or by the file's
change counter (SQLite) within half a second. A heartbeat proves again and again that news still
arrive: a connection can fall silent without ending, and a thread can hang.

There are three kinds of news for caches: that something has changed, anything; which contents have
other references than before; and which files' rows were changed or deleted. The last kind needs no
announcement: the mapper sees it. A fourth kind tells other processes that a commit has left work
for a worker. This module knows nothing of what is cached.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import closing
from typing import TYPE_CHECKING

from sqlalchemy import event, text
from sqlalchemy.orm import Session, object_session

from on_api.core.models.database import Database
from on_api.core.models.file import File

if TYPE_CHECKING:
    from on_api.core.models.patient_connection import PatientConnection

logger = logging.getLogger(__name__)

CHANNEL = "on_api"
MAX_PAYLOAD_LENGTH = 7000
"""Characters of one message; PostgreSQL takes 8000 bytes. A longer one is sent as "anything may
have changed"."""

_CONTENTS = "on_api_contents_changed"
_FILES = "on_api_files_changed"
_WORK = "on_api_work"
_WORK_NEWS = "work"
"""Message that there is work for a worker; no CID is spelled like this."""
_FILE = "file:"
"""Prefix of a file's id in a message; no CID begins with it."""
_ANY = ""
_BEAT = "beat:"
"""Prefix of a heartbeat, before the listener's name and a number; only that listener heeds it."""
POLL_SECONDS = 0.5
BEAT_SECONDS = 1.0
SILENCE_SECONDS = 4.0
"""Seconds without a proof that all news have arrived, after which nothing cached is used."""
ANSWER_SECONDS = 5.0
"""Seconds that PostgreSQL may take to connect a listener."""
RECONNECT_SECONDS = 1.0


ContentsChanged = Callable[[Collection[str] | None], None]
"""Callback that receives CIDs; None stands for any."""
FilesChanged = Callable[[Collection[str] | None], None]
"""Callback that receives ids of files, as text; None stands for any."""


def contents_changed(session: Session, *cids: str) -> None:
    """Announce, for after this session's commit, that the references to these contents (none named:
    to any), or whether they may be served, have changed."""
    session.info.setdefault(_CONTENTS, set()).update(cids or {_ANY})


class Invalidations:
    """Tells subscribers that something has changed. A cache may only be used while `trusted` is
    true.

    Without `start` (short-lived commands) no news of other processes arrive, and `trusted` stays
    false.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._subscribers: list[Callable[[], None]] = []
        self._content_subscribers: list[ContentsChanged] = []
        self._file_subscribers: list[FilesChanged] = []
        self._work_subscribers: list[Callable[[], None]] = []
        self._commits = 0
        """Number of transactions that this process has committed."""
        self._stopping = threading.Event()
        self._trusted = threading.Event()
        self._proved_at = float("-inf")
        """Moment of `time.monotonic` before which all news have arrived."""
        self._is_lost = False
        self._thread: threading.Thread | None = None
        database.on_commit(self._before_commit, self._after_commit)

    @property
    def trusted(self) -> bool:
        """True if changes of other processes arrive at the moment."""
        # By the clock as well: the thread that would clear `_trusted` may itself hang.
        return self._trusted.is_set() and time.monotonic() - self._proved_at < SILENCE_SECONDS

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call `callback` (quick, thread-safe) after every change; it should drop all that it
        caches."""
        self._subscribers.append(callback)

    def subscribe_to_contents(self, callback: ContentsChanged) -> None:
        """Call `callback` (quick, thread-safe) after every change of contents; it should drop the
        named ones, or all with None."""
        self._content_subscribers.append(callback)

    def subscribe_to_files(self, callback: FilesChanged) -> None:
        """Call `callback` (quick, thread-safe) after every change of existing files; it should drop
        the named ones, or all with None."""
        self._file_subscribers.append(callback)

    def subscribe_to_work(self, callback: Callable[[], None]) -> None:
        """Call `callback` (quick, thread-safe) when another process may have left work for a
        worker."""
        self._work_subscribers.append(callback)

    def announce_work(self, session: Session) -> None:
        """Announce to the other processes, for after this session's commit, that there is work for
        a worker."""
        session.info[_WORK] = True

    def announce(self, session: Session) -> None:
        """Announce a change of anything, for after this session's commit; nothing is sent without
        one."""
        if self._database.is_postgresql:
            session.execute(text(f"NOTIFY {CHANNEL}"))
        event.listen(session, "after_commit", lambda _session: self._tell(), once=True)

    def start(self) -> None:
        """Start the thread that listens to the other processes."""
        target = self._listen if self._database.is_postgresql else self._watch_file
        self._thread = threading.Thread(
            target=self._keep, args=(target,), name="on-api-invalidations", daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until `trusted` is set for the first time, at most so many seconds."""
        self._trusted.wait(seconds)

    def stop(self) -> None:
        """Stop listening."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _tell(self) -> None:
        for callback in self._subscribers:
            callback()
        self._tell_contents(None)
        self._tell_files(None)

    def _tell_contents(self, cids: Collection[str] | None) -> None:
        for callback in self._content_subscribers:
            callback(cids)

    def _tell_files(self, ids: Collection[str] | None) -> None:
        for callback in self._file_subscribers:
            callback(ids)

    def _tell_work(self) -> None:
        for callback in self._work_subscribers:
            callback()

    def _before_commit(self, session: Session) -> None:
        if self._database.is_postgresql:
            session.flush()  # this may add to the news
            cids, files = session.info.get(_CONTENTS, set()), session.info.get(_FILES, set())
            work = [_WORK_NEWS] if session.info.get(_WORK) else []
            if not cids and not files and not work:
                return
            news = " ".join(sorted(cids) + sorted(_FILE + file for file in files) + work)
            if _ANY in cids or len(news) > MAX_PAYLOAD_LENGTH:
                news = _ANY
            session.execute(
                text("SELECT pg_notify(:channel, :news)"), {"channel": CHANNEL, "news": news}
            )

    def _after_commit(self, session: Session) -> None:
        self._commits += 1
        session.info.pop(_WORK, None)
        if cids := session.info.pop(_CONTENTS, None):
            self._tell_contents(None if _ANY in cids else cids)
        if files := session.info.pop(_FILES, None):
            self._tell_files(files)

    def _keep(self, target: Callable[[], None]) -> None:
        """Run `target` until `stop`, again after each failure; in between `trusted` is false."""
        while not self._stopping.is_set():
            try:
                target()
            except Exception as error:
                self._trusted.clear()
                if not self._is_lost:  # log once, not at each attempt
                    logger.warning(
                        "lost contact with other processes; caches are disabled: %s",
                        type(error).__name__,
                    )
                self._is_lost = True
                self._stopping.wait(RECONNECT_SECONDS)

    def _begin_to_trust(self, proved_at: float) -> None:
        # First invalidate, then trust: changes before we listened were missed.
        self._tell()
        self._proved_at = proved_at
        self._trusted.set()
        if self._is_lost:
            logger.warning("receiving changes from other processes again")
        self._is_lost = False

    def _listen(self) -> None:
        from on_api.core.models.patient_connection import PatientConnection

        url = self._database.engine.url
        dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with (
            closing(PatientConnection(dsn, ANSWER_SECONDS)) as listener,
            closing(PatientConnection(dsn, ANSWER_SECONDS)) as sender,
        ):
            began = time.monotonic()
            listener.execute(f"LISTEN {CHANNEL}")
            self._begin_to_trust(began)
            self._hear_on(listener, sender)

    def _hear_on(self, listener: PatientConnection, sender: PatientConnection) -> None:
        """Pass on the news that arrive. Our own heartbeats travel the same way, so one that returns
        proves that all news sent before it have arrived. Raises `TimeoutError` when none has
        returned for `SILENCE_SECONDS`."""
        from on_api.core.models.patient_connection import wait_for_any

        name = f"{_BEAT}{uuid.uuid4().hex}:"
        sent = 0
        sent_at: dict[str, float] = {}
        due = time.monotonic()
        while not self._stopping.is_set():
            now = time.monotonic()
            if now - self._proved_at > SILENCE_SECONDS:
                raise TimeoutError
            # Checked each time: an unread answer would make the poll return at once for ever.
            if sender.is_idle() and now >= due:
                sent, due = sent + 1, now + BEAT_SECONDS
                sent_at[f"{name}{sent}"] = now
                sender.begin(f"NOTIFY {CHANNEL}, '{name}{sent}'")
            wait = POLL_SECONDS if due <= now else min(POLL_SECONDS, due - now)
            wait_for_any([listener, sender], wait)
            news = listener.notifies()
            if _ANY in news:
                self._tell()
                self._tell_work()
            elif news:
                self._hear({word for message in news for word in message.split()})
            # Last: by now all earlier news have been passed on.
            for message in news:
                if message in sent_at:
                    self._proved_at = sent_at.pop(message)

    def _hear(self, words: Collection[str]) -> None:
        words = {word for word in words if not word.startswith(_BEAT)}
        if _WORK_NEWS in words:
            self._tell_work()
            words.remove(_WORK_NEWS)
        files = {word.removeprefix(_FILE) for word in words if word.startswith(_FILE)}
        if files:
            self._tell_files(files)
        if cids := {word for word in words if not word.startswith(_FILE)}:
            self._tell_contents(cids)

    def _watch_file(self) -> None:
        with self._database.engine.connect() as watcher:
            raw = watcher.connection.driver_connection
            if raw is None:
                raise RuntimeError("the connection pool timed out")

            def version() -> int:
                # Changes when another connection has committed; no lock, no transaction.
                return int(raw.execute("PRAGMA data_version").fetchone()[0])

            looked_at, seen, commits = time.monotonic(), version(), self._commits
            self._begin_to_trust(looked_at)
            while not self._stopping.wait(POLL_SECONDS):
                looked_at, now = time.monotonic(), version()
                if now != seen:
                    seen = now
                    self._tell()
                    if commits == self._commits:  # not a commit of this process
                        self._tell_work()
                    commits = self._commits
                if looked_at - self._proved_at > SILENCE_SECONDS:
                    silent = looked_at - self._proved_at
                    logger.warning(
                        "did not check for changes of other processes for %.0f s", silent
                    )
                self._proved_at = looked_at


@event.listens_for(File, "after_update")
@event.listens_for(File, "after_delete")
def _file_changed(_mapper: object, _connection: object, file: File) -> None:
    # By the mapper, so that code that changes a file need not announce it. Statements that change
    # many rows at once would go unseen: a test looks for such statements.
    if (session := object_session(file)) is not None:
        session.info.setdefault(_FILES, set()).add(str(file.id))
