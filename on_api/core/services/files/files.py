"""Files as records: list, get, rename, delete. Their bytes are received in `uploads.py`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from on_api.core.errors import NotFound
from on_api.core.ipfs.formats.cid import normalise
from on_api.core.models import File, UserUsage
from on_api.core.models.json_contains import Contains
from on_api.core.services.accounts.access import owned
from on_api.core.services.accounts.names import spellings
from on_api.core.services.content import contents, recorder
from on_api.core.services.shared import events
from on_api.core.services.shared.paging import Listing


@dataclass(frozen=True, slots=True)
class FileFilter:
    """Conditions on files; all that are set must hold. `name_contains` ignores case."""

    name: str | None = None
    name_contains: str | None = None
    cid: str | None = None
    media_type: str | None = None
    visibility: str | None = None
    meta: dict[str, Any] | None = None
    """Contained in the file's own meta, as PostgreSQL's `@>` defines it."""


class FileFacts(NamedTuple):
    """Columns of a file's row that its owner is shown."""

    id: uuid.UUID
    cid: str
    source_cid: str | None
    name: str
    size: int
    media_type: str
    sha256: bytes
    visibility: str
    meta: dict[str, Any]
    created_at: datetime
    source_created_at: datetime | None


_FACTS = tuple(getattr(File, name) for name in FileFacts._fields)


def facts_of(session: Session, user_id: uuid.UUID, file_id: uuid.UUID) -> FileFacts:
    """Return a user's file like `get_file`, for reading only: no entity is built. Raises
    `NotFound`."""
    statement = owned(select(*_FACTS), File.user_id, user_id).where(File.id == file_id)
    row = session.execute(statement).one_or_none()
    if row is None:
        raise NotFound
    return FileFacts._make(row)


def get_file(
    session: Session, user_id: uuid.UUID, file_id: uuid.UUID, *, lock: bool = False
) -> File:
    """Return one file of a user. Raises `NotFound` for any other."""
    statement = _mine(user_id).where(File.id == file_id)
    file = session.scalar(statement.with_for_update() if lock else statement)
    if file is None:
        raise NotFound
    return file


def files_of(session: Session, user_id: uuid.UUID, wanted: FileFilter) -> Listing[File]:
    """List a user's files that match. Without conditions their number is read from the user's
    counter."""
    statement = _matching(_mine(user_id), wanted)
    known = None
    if wanted == FileFilter():
        known = session.scalar(select(UserUsage.file_count).where(UserUsage.user_id == user_id))
    return Listing(statement, File.created_at, File.id, known)


def change_file(
    session: Session, user_id: uuid.UUID, file_id: uuid.UUID, changes: Mapping[str, Any]
) -> File:
    """Set a file's `name` or `meta`. Raises `NotFound`."""
    file = get_file(session, user_id, file_id, lock=True)
    for name, value in changes.items():
        setattr(file, name, value)
    events.record(session, user_id, "file.changed", file_id, fields=sorted(changes))
    session.flush()
    return file


def delete_file(session: Session, user_id: uuid.UUID, file_id: uuid.UUID) -> None:
    """Delete a file; its content stays for other holders. Raises `NotFound`."""
    usage = contents.lock_usage(session, user_id)
    file = get_file(session, user_id, file_id, lock=True)
    session.delete(file)
    events.record(session, user_id, "file.deleted", file_id, cid=file.cid)
    usage.file_count -= 1
    recorder.drop_references(session, usage, [file.cid])


def _mine(user_id: uuid.UUID) -> Select[File]:
    return owned(select(File), File.user_id, user_id)


def _matching(statement: Select[File], wanted: FileFilter) -> Select[File]:
    if wanted.name is not None:
        statement = statement.where(or_(*(File.name == name for name in spellings(wanted.name))))
    if wanted.name_contains is not None:
        parts = spellings(wanted.name_contains)
        contained = (File.name.icontains(part, autoescape=True) for part in parts)
        statement = statement.where(or_(*contained))
    if wanted.cid is not None:
        statement = statement.where(File.cid == normalise(wanted.cid))
    if wanted.media_type is not None:
        statement = statement.where(File.media_type == wanted.media_type)
    if wanted.visibility is not None:
        statement = statement.where(File.visibility == wanted.visibility)
    if wanted.meta is not None:
        statement = statement.where(Contains(File.meta, wanted.meta))
    return statement
