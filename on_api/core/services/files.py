"""Files as records: list, get, rename, delete. How their bytes come in is in `uploads.py`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from on_api.core.errors import NotFound
from on_api.core.ipfs.cid import normalise
from on_api.core.models import File
from on_api.core.pagination import TimePage
from on_api.core.services import contents
from on_api.core.services.access import owned
from on_api.core.services.paging import page_by_time


@dataclass(frozen=True, slots=True)
class FileFilter:
    """Which files: all that is set must hold. `name_contains` ignores case."""

    name: str | None = None
    name_contains: str | None = None
    cid: str | None = None
    media_type: str | None = None
    visibility: str | None = None


def get_file(session: Session, user_id: uuid.UUID, file_id: uuid.UUID) -> File:
    """One file of a user. Raises `NotFound` for any other."""
    file = session.scalar(_mine(user_id).where(File.id == file_id))
    if file is None:
        raise NotFound
    return file


def list_files(
    session: Session, user_id: uuid.UUID, wanted: FileFilter, page: TimePage
) -> tuple[int, Sequence[File]]:
    """How many of a user's files match, and the newest of them."""
    return page_by_time(session, _matching(_mine(user_id), wanted), File.created_at, File.id, page)


def change_file(
    session: Session, user_id: uuid.UUID, file_id: uuid.UUID, changes: Mapping[str, Any]
) -> File:
    """Set a file's `name` or `meta`. Raises `NotFound`."""
    file = session.scalar(_mine(user_id).where(File.id == file_id).with_for_update())
    if file is None:
        raise NotFound
    for name, value in changes.items():
        setattr(file, name, value)
    session.flush()
    return file


def delete_file(session: Session, user_id: uuid.UUID, file_id: uuid.UUID) -> None:
    """Remove a file; its content stays for whoever else holds it. Raises `NotFound`."""
    usage = contents.lock_usage(session, user_id)
    file = session.scalar(_mine(user_id).where(File.id == file_id).with_for_update())
    if file is None:
        raise NotFound
    session.delete(file)
    session.flush()
    usage.file_count -= 1
    contents.drop_reference(session, usage, file.cid)


def _mine(user_id: uuid.UUID) -> Select[File]:
    return owned(select(File), File.user_id, user_id)


def _matching(statement: Select[File], wanted: FileFilter) -> Select[File]:
    if wanted.name is not None:
        statement = statement.where(File.name == wanted.name)
    if wanted.name_contains is not None:
        statement = statement.where(File.name.icontains(wanted.name_contains, autoescape=True))
    if wanted.cid is not None:
        statement = statement.where(File.cid == normalise(wanted.cid))
    if wanted.media_type is not None:
        statement = statement.where(File.media_type == wanted.media_type)
    if wanted.visibility is not None:
        statement = statement.where(File.visibility == wanted.visibility)
    return statement
