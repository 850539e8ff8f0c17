"""Changes of files' visibility: requested by owners, kept as jobs, finished or given up. This is
the database half; `worker/visibility.py` stores the bytes again.

Every change of a job asks for the lease's token: a worker that has lost it changes nothing more.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from on_api.core.errors import Conflict, Unauthorized
from on_api.core.ipfs.port import Added
from on_api.core.models import File, User, VisibilityChange
from on_api.core.models.database import moment_of, new_id
from on_api.core.models.file import FOR_OWNER, PRIVATE, PUBLIC
from on_api.core.services.content import contents, recorder
from on_api.core.services.content.leases import LeaseHandle, LeaseService
from on_api.core.services.files.files import get_file
from on_api.core.services.files.private_files import Sealing, columns_of
from on_api.core.services.shared import events, leased_jobs

NOTICES = {
    PRIVATE: "The file was public before: anyone who downloaded it can keep it, and other nodes and"
    " gateways may continue to serve it under its old CID.",
    PUBLIC: "The file will be available to everyone who knows its new CID, and copies of it can't"
    " be recalled.",
}
"""Consequences of a change to each visibility, in words for the user."""

DETAILS_LENGTH = 500
NEVER = datetime(9999, 1, 1, tzinfo=UTC)
"""`due_at` of a job that was given up: it stays, with its reason, until it is requested again."""


@dataclass(frozen=True, slots=True)
class Job:
    """Change to be carried out by the holder of the token. `attempts` counts this one; `age` is the
    time since the request."""

    id: uuid.UUID
    token: uuid.UUID
    user_id: uuid.UUID
    file_id: uuid.UUID
    visibility: str
    attempts: int
    age: timedelta


class VisibilityService:
    """Service that takes and ends jobs. `ring` is called after a commit that leaves one for the
    worker."""

    def __init__(self, leases: LeaseService, ring: Callable[[Session], None]) -> None:
        self._leases = leases
        self._ring = ring

    def ask(
        self, session: Session, user_id: uuid.UUID, file_id: uuid.UUID, visibility: str
    ) -> VisibilityChange | None:
        """Request a change. Returns None when the file has that visibility already; a change under
        way then ends.

        Raises `NotFound`, or `Conflict` for a private file that the server can't open.
        """
        file = get_file(session, user_id, file_id, lock=True)
        change = find_change(session, file_id, lock=True)
        if file.visibility == visibility:
            if change is not None:
                session.delete(change)
                session.flush()
            return None
        if file.visibility == PRIVATE and file.sealed_for != FOR_OWNER:
            raise Conflict("The server can't decrypt this file, so it can't make it public.")
        now = moment_of(session)
        if change is None:
            change = VisibilityChange(
                id=new_id(), file_id=file_id, user_id=user_id, visibility=visibility, created_at=now
            )
            session.add(change)
        elif has_failed(change):
            change.attempts, change.details, change.created_at = 0, None, now
        change.due_at = now
        session.flush()
        self._ring(session)
        return change

    def finish(
        self,
        session: Session,
        job: Job,
        lease: LeaseHandle,
        old_cid: str,
        added: Added,
        sealing: Sealing | None,
        secured: Mapping[str, int],
    ) -> bool:
        """Put the newly stored content in the old one's place, and end the lease. Returns False
        when the change is obsolete: the file or the job is gone, or another worker was faster.

        Raises `contents.NotSecuredError`, and what closing the lease raises.
        """
        try:
            usage = contents.lock_usage(session, job.user_id)
        except Unauthorized:
            return False
        file = session.scalar(
            select(File)
            .where(File.id == job.file_id, File.user_id == job.user_id, File.cid == old_cid)
            .with_for_update()
        )
        change = leased_jobs.lock_claimed(session, VisibilityChange, job.id, job.token)
        if file is None or change is None:
            return False
        if session.get_one(User, job.user_id).deleted_at is not None:
            return False
        contents.lock_all(session, [old_cid, added.cid])
        recorder.add_reference(session, usage, added.cid, added.dag_size, secured)
        file.cid = added.cid
        for column, value in columns_of(sealing, added.size).items():
            setattr(file, column, value)
        session.delete(change)
        recorder.drop_references(session, usage, [old_cid])
        events.record(
            session, file.user_id, "file.changed", file.id, fields=["cid", "visibility"],
            cid=file.cid, visibility=file.visibility,
        )  # fmt: skip
        self._leases.close(session, lease, usage, 0)
        return True


def find_change(
    session: Session, file_id: uuid.UUID, *, lock: bool = False
) -> VisibilityChange | None:
    """Return the change of a file that is under way or has failed."""
    statement = select(VisibilityChange).where(VisibilityChange.file_id == file_id)
    return session.scalar(statement.with_for_update() if lock else statement)


def has_failed(change: VisibilityChange) -> bool:
    """Return whether a change was given up."""
    return change.due_at >= NEVER


def any_due(session: Session) -> bool:
    """Return whether `claim` would find a job. Reads only."""
    return leased_jobs.any_due(session, VisibilityChange)


def next_due(session: Session) -> float | None:
    """Return the seconds until the next change is due; None while none waits."""
    return leased_jobs.next_due(session, VisibilityChange)


def claim(session: Session, life: timedelta) -> Job | None:
    """Claim the job that has been due for longest, for `life`."""
    claimed = leased_jobs.claim(session, VisibilityChange, life)
    if claimed is None:
        return None
    change, token = claimed
    return Job(
        id=change.id,
        token=token,
        user_id=change.user_id,
        file_id=change.file_id,
        visibility=change.visibility,
        attempts=change.attempts,
        age=moment_of(session) - change.created_at,
    )


def renew(session: Session, job: Job, life: timedelta) -> bool:
    """Renew a job's lease. Returns False when it was lost, or the job is no longer wanted."""
    return leased_jobs.renew(session, VisibilityChange, job.id, job.token, life)


def put_back(
    session: Session, job: Job, details: str | None, *, due_in: timedelta, counted: bool = True
) -> None:
    """Return a job to the queue; does nothing if it was lost. `counted=False`: without counting the
    attempt."""
    change = leased_jobs.lock_claimed(session, VisibilityChange, job.id, job.token)
    if change is not None:
        leased_jobs.put_back(change, due_in=due_in, counted=counted)
        change.details = None if details is None else details[:DETAILS_LENGTH]


def give_up(session: Session, job: Job, details: str) -> None:
    """End a job as failed, with the reason; does nothing if it was lost."""
    change = leased_jobs.lock_claimed(session, VisibilityChange, job.id, job.token)
    if change is not None:
        change.release()
        change.due_at, change.details = NEVER, details[:DETAILS_LENGTH]
        events.record(
            session, job.user_id, "file.change_failed", job.file_id,
            visibility=job.visibility, details=change.details,
        )  # fmt: skip
