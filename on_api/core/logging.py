"""Logs: one line per event on standard error, for people or as JSON, each with the id of the
request it belongs to.

Sets up the standard library's logging once, at the start of a process. What is logged must hold no
secret: queries, bodies and headers are never passed to it.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import TextIO

from on_api.core.server_settings import LogSettings

logger = logging.getLogger(__name__)

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request that this task or thread works for."""

_API_KEY = re.compile(r"(onapi_[0-9A-Za-z]{6})[0-9A-Za-z]{10,}")
_SHARE_LINK = re.compile(r"/s/[0-9A-Za-z]{16,}")

# Control characters, which may steer a terminal; separators, at which some readers end a line; and
# characters that change the direction of text. None of them may enter the log from outside.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_MOST_CAUSES = 3
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Syslog's priorities, by the least level; 7 is for what is below."""

EXTRA = "on_api"
"""Attribute of a record that holds its structured fields: `logger.info("…", extra={EXTRA:
{…}})`."""


def configure_logging(settings: LogSettings) -> None:
    """Send every logger's lines to standard error in the chosen format."""
    handler = _Handler(sys.stderr)
    handler.is_for_machines = settings.format == "json"
    formatter = _JsonFormatter() if handler.is_for_machines else _ConsoleFormatter()
    handler.setFormatter(_PriorityFormatter(formatter) if settings.priority else formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.level)
    # No line shows these, and determining them takes as long as the line itself.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # as Python's logging HOWTO advises
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "alembic"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    # Our own access log says more, and leaves out what must not be in a log.
    logging.getLogger("uvicorn.access").disabled = True
    if settings.level != "DEBUG":
        for name in ("alembic", "httpx", "urllib3", "asyncio"):
            logging.getLogger(name).setLevel(logging.WARNING)


def log_uncaught_errors() -> None:
    """Log what Python itself would write to standard error: warnings, and errors that nothing
    handles. A reader of JSON is to find nothing else there. For processes that stay."""
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable


def mask_foreign_access_log() -> None:
    """Keep secrets out of uvicorn's own access log, in case the application is served by uvicorn's
    command; `configure_logging` switches that log off."""
    logging.getLogger("uvicorn.access").addFilter(_masks_arguments)


def tell_failure(details: str) -> None:
    """Say why a command ends: by a sentence on standard error or, once the log is JSON, by a line
    of the log."""
    handlers = logging.getLogger().handlers
    if any(isinstance(each, _Handler) and each.is_for_machines for each in handlers):
        logger.critical("%s", details)
    else:
        sys.stderr.write(f"on-api: {details}\n")


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the structured fields of a record, the request's id first."""
    current = request_id.get()
    first: dict[str, object] = {} if current is None else {"request_id": current}
    return first | getattr(record, EXTRA, {})


def log_failure(logger: logging.Logger, words: str, cause: BaseException | None) -> None:
    """Warn of a request that failed with one of on-api's own errors: in one line, since there is
    one for each request while a node or a database is down. The traceback of its cause is logged at
    the level DEBUG only."""
    trace = cause if logger.isEnabledFor(logging.DEBUG) else None
    reasons: list[str] = []
    while cause is not None and len(reasons) < _MOST_CAUSES:
        # Types and the system's texts only: other texts may hold private data.
        system = cause.strerror if isinstance(cause, OSError) else None
        reasons.append(f"{type(cause).__name__} ({system})" if system else type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    logger.warning("%s", ": ".join([words, *reasons]), exc_info=trace)


def _masks_arguments(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(_masked(a) if isinstance(a, str) else a for a in record.args)
    return True


class _Handler(logging.StreamHandler[TextIO]):
    is_for_machines = False


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _moment(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _masked(_CONTROLS.sub(_as_json, json.dumps(line, ensure_ascii=False, default=str)))


class _ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in fields_of(record).items())
        text = f"{record.name}: {record.getMessage()} {fields}"
        line = f"{_moment(record)} {record.levelname:7} {_CONTROLS.sub(_as_escape, text)}".rstrip()
        if record.exc_info:
            lines = self.formatException(record.exc_info).split("\n")
            line = "\n".join([line, *(_CONTROLS.sub(_as_escape, text) for text in lines)])
        return _masked(line)


class _PriorityFormatter(logging.Formatter):
    """Begins each line with the priority that journald knows from syslog."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        found = (each for level, each in _PRIORITIES if record.levelno >= level)
        priority = f"<{next(found, 7)}>"
        return "\n".join(priority + line for line in self._inner.format(record).split("\n"))


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logger.critical("an error that nobody handles", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(told: threading.ExceptHookArgs) -> None:
    if told.exc_value is not None and not isinstance(told.exc_value, SystemExit):
        name = "?" if told.thread is None else told.thread.name
        info = (told.exc_type, told.exc_value, told.exc_traceback)
        logger.critical("the thread %s has ended by an error", name, exc_info=info)


def _log_unraisable(told: sys.UnraisableHookArgs) -> None:
    if told.exc_value is not None:
        info = (told.exc_type, told.exc_value, told.exc_traceback)
        logger.error("%s", told.err_msg or "an error that can't be raised", exc_info=info)


def _masked(line: str) -> str:
    """Mask API keys and share links, recognised by their form: a client may put its key into a
    path, and a link is a secret."""
    if "onapi_" in line:
        line = _API_KEY.sub(r"\1…", line)
    return _SHARE_LINK.sub("/s/…", line) if "/s/" in line else line


def _moment(record: logging.LogRecord) -> str:
    return f"{_second(int(record.created))}.{int(record.msecs):03d}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _as_escape(found: re.Match[str]) -> str:
    """Return the character as Python escapes it: `\\n`, `\\x1b`, `\\u2028`."""
    return found[0].encode("unicode_escape").decode()


def _as_json(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
