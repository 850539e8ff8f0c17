"""Move of a deployment from one database to another, while no on-api uses either."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import func, inspect, select
from sqlalchemy.orm import Session

from on_api.core.errors import Conflict
from on_api.core.models import (
    Content,
    Database,
    Import,
    Maintenance,
    Pin,
    VisibilityChange,
    migrations,
)
from on_api.core.models.copying import (
    CopiedTable,
    CopyProgress,
    check_side,
    copy_rows,
    snapshot,
)
from on_api.core.models.database import database_now, moment_of
from on_api.core.models.revisions import present_revision
from on_api.core.services.accounts.presence import DEAD_AFTER, live_processes
from on_api.core.services.upkeep.instance import running_instance
from on_api.core.settings import Settings

_LEASED = (Content, Import, Maintenance, Pin, VisibilityChange)
"""Tables of which a worker or a command leases the rows that it works on."""


def refuse_if_served(home: Path, *sides: Settings) -> None:
    """Raise `Conflict` if the on-api that runs in a home uses a database of these settings."""
    instance = running_instance(home)
    if instance is None or instance.database is None:
        return
    if any(instance.uses_database_of(side) for side in sides):
        raise Conflict(
            f"on-api runs in {home.absolute()} (process {instance.pid}) and uses "
            f"{instance.database}: stop it, then copy."
        )


def move(
    source: Database, target: Database, progress: CopyProgress | None = None
) -> Sequence[CopiedTable]:
    """Copy everything into an empty database, which gets its tables first. Returns what was copied.

    All or nothing: after an error the target has no rows. Raises `Conflict` if a process or a lease
    in the source lives or the target is not empty, `StartupError` for a wrong revision, and what
    `copy_rows` and `Database.session_scope` raise.
    """
    _refuse_if_used(source)
    with snapshot(source) as reading:
        check_side(reading, "source")
        _give_tables(target)
        with target.session_scope() as session:
            copied = copy_rows(reading, session.connection(), progress)
            # What a process that has started meanwhile writes would be lost.
            _refuse_if_used(source)
    return copied


def _give_tables(target: Database) -> None:
    with target.session_scope(write=False) as session:
        is_new = present_revision(session.connection()) is None
        if is_new and inspect(session.connection()).get_table_names():
            raise Conflict(
                "The target has tables that are none of on-api's: name a new, empty database."
            )
    if is_new:
        migrations.upgrade(target)


def _refuse_if_used(source: Database) -> None:
    with source.session_scope(write=False) as session:
        if not inspect(session.connection()).has_table("processes"):
            return  # at an old revision, or no database of on-api: refused as that
        if living := live_processes(session):
            named = ", ".join(f"process {each.pid} on {each.host}" for each in living)
            raise Conflict(
                f"on-api uses the source: {named}. Stop it, then copy; what was killed counts as "
                f"running for {DEAD_AFTER.total_seconds():.0f} seconds."
            )
        _refuse_leases(session)


def _refuse_leases(session: Session) -> None:
    for model in _LEASED:
        until = session.scalar(
            select(func.max(model.lease_until)).where(model.lease_until > database_now())
        )
        if until is not None:
            seconds = (until - moment_of(session)).total_seconds()
            raise Conflict(
                f"Something still works on rows of {model.__tablename__} in the source: let it "
                "end, then copy. If it was killed, its lease ends in "
                f"{max(1, round(seconds))} seconds."
            )
