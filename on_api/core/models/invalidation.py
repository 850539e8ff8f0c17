"""The one port by which caches learn that what they hold has changed, in this process and in the
others.

A writer announces within its transaction. When that commits, subscribers of this process are told
at once; those of other processes by NOTIFY (PostgreSQL), or by the file's change counter (SQLite)
within half a second. There are three kinds of news: that something changed, anything; which
contents are referred to otherwise than before; and which files' rows are not what they were, or are
gone. That last one nobody has to announce: the mapper sees it. Knows nothing of what is cached.
"""

from __future__ import annotations

import logging
import select
import threading
from collections.abc import Callable, Collection

import psycopg2
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT, connection
from sqlalchemy import event, text
from sqlalchemy.orm import Session, object_session

from on_api.core.models.database import Database
from on_api.core.models.file import File

logger = logging.getLogger(__name__)

CHANNEL = "on_api"
MAX_PAYLOAD = 7000
"""Characters of news; PostgreSQL takes 8000 bytes. With more of it everything may have changed."""

_CONTENTS = "on_api_contents_changed"
_FILES = "on_api_files_changed"
_FILE = "file:"
"""Before the id of a file, in news; no CID begins with it."""
_ANY = ""
POLL_SECONDS = 0.5
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
        self._stopping = threading.Event()
        self._trusted = threading.Event()
        self._thread: threading.Thread | None = None
        database.on_commit(self._before_commit, self._after_commit)

    @property
    def trusted(self) -> bool:
        """Whether changes of other processes are being heard at the moment."""
        return self._trusted.is_set()

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

    def _before_commit(self, session: Session) -> None:
        if self._database.is_postgresql:
            session.flush()  # what it writes now is news as well
            cids, files = session.info.get(_CONTENTS, set()), session.info.get(_FILES, set())
            if not cids and not files:
                return
            news = " ".join(sorted(cids) + sorted(_FILE + file for file in files))
            if _ANY in cids or len(news) > MAX_PAYLOAD:
                news = _ANY
            session.execute(
                text("SELECT pg_notify(:channel, :news)"), {"channel": CHANNEL, "news": news}
            )

    def _after_commit(self, session: Session) -> None:
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
                logger.warning("lost the news of other processes: %s", type(error).__name__)
                self._stopping.wait(RECONNECT_SECONDS)

    def _begin_to_trust(self) -> None:
        # First forget, then trust: changes made before we listened went unheard.
        self._tell()
        self._trusted.set()

    def _listen(self) -> None:
        url = self._database.engine.url
        dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        listener: connection = psycopg2.connect(dsn, connect_timeout=5, application_name="on-api")
        try:
            listener.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
            with listener.cursor() as cursor:
                cursor.execute(f"LISTEN {CHANNEL}")
            self._begin_to_trust()
            while not self._stopping.is_set():
                if select.select([listener], [], [], POLL_SECONDS)[0]:
                    listener.poll()
                    news = [notify.payload for notify in listener.notifies]
                    listener.notifies.clear()
                    if _ANY in news:
                        self._tell()
                    elif news:
                        self._hear({word for said in news for word in said.split()})
        finally:
            listener.close()

    def _hear(self, words: Collection[str]) -> None:
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

            seen = version()
            self._begin_to_trust()
            while not self._stopping.wait(POLL_SECONDS):
                if (now := version()) != seen:
                    seen = now
                    self._tell()


@event.listens_for(File, "after_update")
@event.listens_for(File, "after_delete")
def _file_changed(_mapper: object, _connection: object, file: File) -> None:
    # By the mapper, so that no one who changes a file has to think of it. What changes many rows
    # in one statement would go unseen: a test looks for such statements.
    if (session := object_session(file)) is not None:
        session.info.setdefault(_FILES, set()).add(str(file.id))
