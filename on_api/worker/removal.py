"""Removes the data of deleted accounts, in pieces, until nothing is left. A crash loses one piece
of work at most."""

from __future__ import annotations

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from on_api.core.models import Database, File, Import, ImportItem, Pin, User, UserUsage
from on_api.core.models.pin import PINNED_STATUS
from on_api.core.services.content import contents, leftovers, recorder
from on_api.core.services.pins.pins import was_touched

BATCH_ROWS = 200
"""Files, pins or items removed in one transaction."""


def remove_deleted_accounts(database: Database) -> bool:
    """Remove the data of all deleted accounts. Return whether all of it is gone: an account may
    still be in use by another process that removes it, or by an upload that began before."""
    while _any_left(database):
        with database.session_scope() as session:
            # Counters first, as everywhere: an upload that has them locked refers to its user next.
            # Locked ones are skipped: another process works on them.
            usage = session.scalar(
                select(UserUsage)
                .join(User, User.id == UserUsage.user_id)
                .where(User.deleted_at.is_not(None))
                .order_by(User.deleted_at)
                .limit(1)
                .with_for_update(of=UserUsage, skip_locked=True)
            )
            if usage is None:
                return False
            user = session.get_one(User, usage.user_id)
            if not any(remove(session, user) for remove in _PIECES):
                session.delete(user)
    return True


def _any_left(database: Database) -> bool:
    """Return whether any deleted account is left. Only reads: on SQLite a look must not take the
    only writer's turn."""
    with database.session_scope(write=False) as session:
        return bool(session.scalar(select(exists().where(User.deleted_at.is_not(None)))))


def _remove_files(session: Session, user: User) -> bool:
    """Remove one batch. Return whether there was any."""
    usage = contents.lock_usage(session, user.id)
    files = session.scalars(
        select(File).where(File.user_id == user.id).order_by(File.cid).limit(BATCH_ROWS)
    ).all()
    for file in files:
        session.delete(file)
    recorder.drop_references(session, usage, [file.cid for file in files])
    usage.file_count -= len(files)
    return bool(files)


def _remove_pins(session: Session, user: User) -> bool:
    """Remove one batch. Return whether there was any. A fetch under way loses its lease."""
    usage = contents.lock_usage(session, user.id)
    found = session.scalars(
        # In the same order as everywhere that several rows are locked.
        select(Pin)
        .where(Pin.user_id == user.id)
        .order_by(Pin.id)
        .limit(BATCH_ROWS)
        .with_for_update()
    ).all()
    for pin in found:
        session.delete(pin)
        # The node may have pinned it, and no row would tell of that pin.
        if pin.status != PINNED_STATUS and was_touched(pin):
            leftovers.leave(session, pin.id, [pin.cid])
    pinned = [pin.cid for pin in found if pin.status == PINNED_STATUS]
    recorder.drop_references(session, usage, pinned)
    return bool(found)


def _remove_imports(session: Session, user: User) -> bool:
    """Remove one batch of items, then their import. Return whether there was any. An import under
    way loses its lease."""
    contents.lock_usage(session, user.id)
    row = session.scalar(select(Import).where(Import.user_id == user.id).limit(1).with_for_update())
    if row is None:
        return False
    row.lease_token = row.due_at = row.secrets = row.secret_version = None
    batch = select(ImportItem.id).where(ImportItem.import_id == row.id).limit(BATCH_ROWS)
    removed = session.execute(
        delete(ImportItem).where(ImportItem.id.in_(batch)).returning(ImportItem.id)
    )
    if not removed.all():
        session.delete(row)
    return True


_PIECES = (_remove_imports, _remove_files, _remove_pins)
"""Imports first: they make files and pins."""
