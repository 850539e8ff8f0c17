"""The one port by which caches learn that what they hold has changed, in this process and in the
others.

A writer announces within its transaction. When that commits, subscribers of this process are told
at once; those of other processes by NOTIFY (PostgreSQL), or by the file's change counter (SQLite)
within half a second. That news still come is proved again and again: a connection can fall silent
without ending, and a thread can hang.

There are three kinds of news: that something changed, anything; which contents are referred to
otherwise than before; and which files' rows are not what they were, or are gone. That last one
nobody has to announce: the mapper sees it. Knows nothing of what is cached.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import closing

from sqlalchemy import event, text
from sqlalchemy.orm import Session, object_session

from on_api.core.models.database import Database
from on_api.core.models.file import File
from on_api.core.models.patient_connection import PatientConnection, wait_for_any

logger = logging.getLogger(__name__)

CHANNEL = "on_api"
MAX_PAYLOAD = 7000
"""Characters of news; PostgreSQL takes 8000 bytes. With more of it everything may have changed."""

_CONTENTS = "on_api_contents_changed"
_FILES = "on_api_files_changed"
_WORK = "on_api_work"
_WORK_NEWS = "work"
"""News that there is work for a worker; no CID is written so."""
_FILE = "file:"
"""Before the id of a file, in news; no CID begins with it."""
_ANY = ""
_BEAT = "beat:"
"""Before a listener's name and the number of a heartbeat, in news that is for that listener."""
POLL_SECONDS = 0.5
BEAT_SECONDS = 1.0
SILENCE_SECONDS = 4.0
"""How long it is believed that all news have come: after that nothing cached is used."""
ANSWER_SECONDS = 5.0
"""How long PostgreSQL may take to let a listener in."""
RECONNECT_SECONDS = 1.0


ContentsChanged = Callable[[Collection[str] | None], None]
"""Is told of CIDs; None: of any."""
FilesChanged = Callable[[Collection[str] | None], None]
"""Is told of ids of files, as text; None: of any."""


def contents_changed(session: Session, *cids: str) -> None:
    """Tell everyone, once this session's transaction has committed, that who refers to these
    contents (none named: to any), or whether they may be served, is not what it was."""
    session.info.setdefault(_CONTENTS, set()).update(cids or {_ANY})


class Invalidations:
    """Tells subscribers that something changed. A cache may only be used while `trusted` is true.

    Without `start` (short-lived commands) nothing is heard from other processes and `trusted` stays
    false.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._subscribers: list[Callable[[], None]] = []
        self._content_subscribers: list[ContentsChanged] = []
        self._file_subscribers: list[FilesChanged] = []
        self._work_subscribers: list[Callable[[], None]] = []
        self._commits = 0
        """Transactions that this process has committed."""
        self._stopping = threading.Event()
        self._trusted = threading.Event()
        self._proved_at = float("-inf")
        """On the clock of `time.monotonic`: all news from before that moment have come."""
        self._is_lost = False
        self._thread: threading.Thread | None = None
        database.on_commit(self._before_commit, self._after_commit)

    @property
    def trusted(self) -> bool:
        """Whether changes of other processes are being heard at the moment."""
        # By the clock as well: whoever would say that nothing comes any more may hang itself.
        return self._trusted.is_set() and time.monotonic() - self._proved_at < SILENCE_SECONDS

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call `callback` (quick, thread-safe) after every change: forget what you hold."""
        self._subscribers.append(callback)

    def subscribe_to_contents(self, callback: ContentsChanged) -> None:
        """Call `callback` (quick, thread-safe) after every change of contents: forget these, or
        with None all that you hold."""
        self._content_subscribers.append(callback)

    def subscribe_to_files(self, callback: FilesChanged) -> None:
        """Call `callback` (quick, thread-safe) after every change of files that were there before:
        forget these, or with None all that you hold."""
        self._file_subscribers.append(callback)

    def subscribe_to_work(self, callback: Callable[[], None]) -> None:
        """Call `callback` (quick, thread-safe) when another process may have left work for a
        worker."""
        self._work_subscribers.append(callback)

    def announce_work(self, session: Session) -> None:
        """Tell the other processes, once this session's transaction has committed, that there is
        work for a worker."""
        session.info[_WORK] = True

    def announce(self, session: Session) -> None:
        """Tell everyone once this session's transaction has committed; nothing if it doesn't."""
        if self._database.is_postgresql:
            session.execute(text(f"NOTIFY {CHANNEL}"))
        event.listen(session, "after_commit", lambda _session: self._tell(), once=True)

    def start(self) -> None:
        """Begin to listen to the other processes."""
        target = self._listen if self._database.is_postgresql else self._watch_file
        self._thread = threading.Thread(
            target=self._keep, args=(target,), name="on-api-invalidations", daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until the others are heard for the first time, but no longer than that."""
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
            session.flush()  # what it writes now is news as well
            cids, files = session.info.get(_CONTENTS, set()), session.info.get(_FILES, set())
            work = [_WORK_NEWS] if session.info.get(_WORK) else []
            if not cids and not files and not work:
                return
            news = " ".join(sorted(cids) + sorted(_FILE + file for file in files) + work)
            if _ANY in cids or len(news) > MAX_PAYLOAD:
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
        """Run `target` until `stop`; between its failures nothing cached is trusted."""
        while not self._stopping.is_set():
            try:
                target()
            except Exception as error:
                self._trusted.clear()
                if not self._is_lost:  # once, and not at each attempt
                    logger.warning("lost the news of other processes: %s", type(error).__name__)
                self._is_lost = True
                self._stopping.wait(RECONNECT_SECONDS)

    def _begin_to_trust(self, proved_at: float) -> None:
        # First forget, then trust: changes made before we listened went unheard.
        self._tell()
        self._proved_at = proved_at
        self._trusted.set()
        if self._is_lost:
            logger.warning("the news of other processes are heard again")
        self._is_lost = False

    def _listen(self) -> None:
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
        """Pass on what is heard. Our own heartbeats come the same way, after all news from before
        they were sent. Raises `TimeoutError` when none has come back for long."""
        name = f"{_BEAT}{uuid.uuid4().hex}:"
        sent = 0
        sent_at: dict[str, float] = {}
        due = time.monotonic()
        while not self._stopping.is_set():
            now = time.monotonic()
            if now - self._proved_at > SILENCE_SECONDS:
                raise TimeoutError
            # Each time: an answer that isn't read would wake us for ever.
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
                self._hear({word for said in news for word in said.split()})
            # Last: by now everything that came before it has been told.
            for said in news:
                if said in sent_at:
                    self._proved_at = sent_at.pop(said)

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
                raise RuntimeError("the pool gave no connection")

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
                    if commits == self._commits:  # it was not one of ours
                        self._tell_work()
                    commits = self._commits
                if looked_at - self._proved_at > SILENCE_SECONDS:
                    silent = looked_at - self._proved_at
                    logger.warning("nobody looked for news of other processes for %.0f s", silent)
                self._proved_at = looked_at


@event.listens_for(File, "after_update")
@event.listens_for(File, "after_delete")
def _file_changed(_mapper: object, _connection: object, file: File) -> None:
    # By the mapper, so that no one who changes a file has to think of it. What changes many rows
    # in one statement would go unseen: a test looks for such statements.
    if (session := object_session(file)) is not None:
        session.info.setdefault(_FILES, set()).add(str(file.id))
