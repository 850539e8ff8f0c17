"""Errors of both databases, by their codes: which of them are races, time-outs, or defects that the
operator has to mend."""

from __future__ import annotations

from sqlalchemy import ExceptionContext
from sqlalchemy.exc import IntegrityError

# SQLSTATEs of PostgreSQL (its manual, appendix A). psycopg2 has names for them, but a server on
# SQLite has no need to load it.
_FOREIGN_KEY_VIOLATION = "23503"
_UNIQUE_VIOLATION = "23505"
_READ_ONLY_TRANSACTION = "25006"
_DISK_FULL = "53100"
_TIMED_OUT = "57014"

FULL = "The database's disk is full."
_READ_ONLY = "The database is read-only at the moment."
_DAMAGED = "The database file is damaged or not an SQLite database: restore it from a backup."
_EXPLAINED = {
    _READ_ONLY_TRANSACTION: _READ_ONLY,
    _DISK_FULL: FULL,
    "SQLITE_READONLY": _READ_ONLY,
    "SQLITE_FULL": FULL,
    "SQLITE_CORRUPT": _DAMAGED,
    "SQLITE_NOTADB": _DAMAGED,
}
"""Messages for the operator, by the error codes of both databases."""


def is_race(error: IntegrityError) -> bool:
    """Return whether a row that is unique, or that another row needs, came or went between our read
    and our write."""
    code = _sqlstate(error) or getattr(error.orig, "sqlite_errorname", None)
    return code in {
        _UNIQUE_VIOLATION,
        _FOREIGN_KEY_VIOLATION,
        "SQLITE_CONSTRAINT_UNIQUE",
        "SQLITE_CONSTRAINT_PRIMARYKEY",
        "SQLITE_CONSTRAINT_FOREIGNKEY",
    }


def has_timed_out(error: Exception) -> bool:
    """Return whether PostgreSQL ended the statement after its `statement_timeout`."""
    return _sqlstate(error) == _TIMED_OUT


def explained(error: Exception) -> str | None:
    """Return a defect of the database itself that its operator has to mend, or None."""
    cause = getattr(error, "orig", None)
    # The first two words of SQLite's name; the third says what it was doing.
    name = "_".join((getattr(cause, "sqlite_errorname", None) or "").split("_")[:2])
    return _EXPLAINED.get(_sqlstate(error) or name)


def cause_of(error: Exception) -> str:
    """Return the first line of the driver's message: what happened, without the statement."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def distrust_confusion(context: ExceptionContext) -> None:
    """Give up a connection to PostgreSQL whose answer psycopg2 could not parse: it raises its bare
    `DatabaseError` then. A listener for `handle_error`."""
    if type(context.original_exception) is context.dialect.loaded_dbapi.DatabaseError:
        context.is_disconnect = True


def _sqlstate(error: Exception) -> str | None:
    state: str | None = getattr(getattr(error, "orig", None), "pgcode", None)
    return state
