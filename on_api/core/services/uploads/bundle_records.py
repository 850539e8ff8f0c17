"""The database's side of a bundle: admission of its uploads before their files are stored, and
their records after, in one transaction. A bundle has uploads of many users, and rows come by the
hundred, so these are plain statements.

An upload that can't be recorded with the others is left out, and then stored alone, where its own
error shows.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from on_api.core.errors import ServiceUnavailable, Unauthorized
from on_api.core.ipfs.formats.bundle import Block, Bundle
from on_api.core.models import Database
from on_api.core.services.accounts.idempotency import Answered, IdempotencyClaim, IdempotencyService
from on_api.core.services.accounts.keys import keys_in_force
from on_api.core.services.content import contents, recorder
from on_api.core.services.content.leases import GIVEN_UP
from on_api.core.services.content.quota import Room, rooms_of
from on_api.core.services.content.recorder import Usages
from on_api.core.services.content.standing_lease import HeldLease
from on_api.core.services.content.statements import (
    holding_on,
    keeping,
)
from on_api.core.services.files.files import FileFacts
from on_api.core.services.uploads.stored_files import MICROSECOND, UploadedFile, facts_in

Files = Sequence[FileFacts]
"""Files of one upload, as they were recorded."""


@dataclass(frozen=True, slots=True, eq=False)
class SmallUpload:
    """Files of one request, whole in memory, with the block of each that the node is to store.

    `claim` and `answer` are set if the answer is to be recorded with them.
    """

    user_id: uuid.UUID
    key_id: uuid.UUID
    files: Sequence[UploadedFile]
    blocks: Sequence[Block]
    claim: IdempotencyClaim | None = None
    answer: Callable[[Files], Answered] | None = None

    @property
    def size(self) -> int:
        """Bytes on the node."""
        return sum(file.stored_size for file in self.files)


@dataclass(frozen=True, slots=True)
class Admitted:
    """Uploads that may go together. `fresh`: the blocks that the node must be given, each once, by
    CID; the others are kept by on-api already."""

    uploads: Sequence[SmallUpload]
    fresh: Mapping[str, Block]


@dataclass(frozen=True, slots=True)
class Recorded:
    """Files of each admitted upload; None for an upload that could not be recorded with the others,
    an error for one that may not be stored at all. `collecting`: a garbage collection is about to
    begin, and waits for the lease to end."""

    files: Sequence[Files | Unauthorized | None]
    collecting: bool


class BundleRecords:
    """The database's side of bundles."""

    def __init__(self, database: Database, idempotency: IdempotencyService) -> None:
        self._database = database
        self._idempotency = idempotency

    def admit(self, uploads: Sequence[SmallUpload]) -> Admitted:
        """Return the uploads that may be stored, by reading alone; the others are left out. The
        binding check is made again when they are recorded."""
        with self._database.session_scope(write=False) as session:
            users = {upload.user_id for upload in uploads}
            admitted = _that_fit(rooms_of(session, users), uploads)
            fresh = {
                file.cid: block
                for upload in admitted
                for file, block in zip(upload.files, upload.blocks, strict=True)
            }
            for cid in session.connection().execute(keeping(), {"cids": list(fresh)}).scalars():
                del fresh[cid]
            return Admitted(admitted, fresh)

    def record(self, lease: HeldLease, admitted: Admitted, bundle: Bundle | None) -> Recorded:
        """Record uploads whose blocks the node has, in the pinned `bundle`, or from before.

        Raises `ServiceUnavailable` when the lease is no longer ours, `Conflict` for a lost race.
        """
        uploads = admitted.uploads
        with self._database.session_scope() as session:
            users = {upload.user_id for upload in uploads}
            usages = contents.usages_of(session, users)
            # Keys may have been revoked while the bytes came, or with their users.
            keys = keys_in_force(session, {upload.key_id for upload in uploads})
            allowed = [upload for upload in uploads if upload.key_id in keys]
            claims = [upload.claim for upload in allowed if upload.claim is not None]
            held = self._idempotency.lock(session, claims)
            fit = [upload for upload in allowed if upload.claim is None or upload.claim.id in held]
            rooms = {user_id: Room.of(usage) for user_id, usage in usages.items()}
            fit = _that_fit(rooms, fit)
            sizes = {file.cid: file.dag_size for upload in fit for file in upload.files}
            locked = recorder.lock_contents(session, sizes, bundle=bundle, covered=admitted.fresh)
            fit = [u for u in fit if all(file.cid in locked.sizes for file in u.files)]
            references = Counter((u.user_id, file.cid) for u in fit for file in u.files)
            recorder.add_references(session, usages, references, locked)
            recorded = self._record_files(session, usages, fit)
            collecting = _is_collecting(session, lease)
            outcomes = [
                recorded.get(upload) if upload.key_id in keys else Unauthorized()
                for upload in uploads
            ]
            return Recorded(outcomes, collecting)

    def _record_files(
        self, session: Session, usages: Usages, uploads: Sequence[SmallUpload]
    ) -> dict[SmallUpload, Files]:
        """Record the files of uploads, and their answers."""
        files = Counter[uuid.UUID]()
        for upload in uploads:
            files[upload.user_id] += len(upload.files)
        moments = {
            user_id: iter(contents.next_moments(usages[user_id], count, step=MICROSECOND))
            for user_id, count in files.items()
        }
        rows: list[dict[str, Any]] = []
        recorded: dict[SmallUpload, Files] = {}
        for upload in uploads:
            moment = moments[upload.user_id]
            own = [file.columns(upload.user_id, next(moment)) for file in upload.files]
            rows += own
            recorded[upload] = [facts_in(row) for row in own]
        recorder.record_files(session, usages, rows)
        for upload, stored in recorded.items():
            if upload.claim is not None and upload.answer is not None:
                self._idempotency.finish(session, upload.claim, upload.answer(stored))
        return recorded


def _that_fit(rooms: Mapping[uuid.UUID, Room], uploads: Iterable[SmallUpload]) -> list[SmallUpload]:
    """Return the uploads, in their order, that fit into their users' quotas, and take that room."""
    return [u for u in uploads if u.user_id in rooms and rooms[u.user_id].take(u.size)]


def _is_collecting(session: Session, lease: HeldLease) -> bool:
    """Return whether garbage is to be collected. Locks the lease to the transaction's end. Raises
    `ServiceUnavailable` when it is gone."""
    mine = {"id": lease.id, "token": lease.token}
    row = session.connection().execute(holding_on(), mine).one_or_none()
    if row is None:
        raise ServiceUnavailable(GIVEN_UP)
    return bool(row.collecting)
