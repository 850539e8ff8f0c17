"""The database's side of a bundle: who may go with it, before its files are stored, and their
records after, in one transaction. Many users' uploads in one; rows by the hundred, so plain
statements.

Who can't go with the others is left out, and told so: their own errors are found out alone.
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
from on_api.core.services.accounts.idempotency import Answered, Claim, IdempotencyService
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
from on_api.core.services.uploads.stored_files import MICROSECOND, StoredFile, facts_in

Files = Sequence[FileFacts]
"""Of one upload, as they were recorded."""


@dataclass(frozen=True, slots=True, eq=False)
class SmallUpload:
    """One request's files, whole in memory: the block of each is what the node is to have.

    `claim` and `answer` where the answer is to be recorded with them.
    """

    user_id: uuid.UUID
    key_id: uuid.UUID
    files: Sequence[StoredFile]
    blocks: Sequence[Block]
    claim: Claim | None = None
    answer: Callable[[Files], Answered] | None = None

    @property
    def size(self) -> int:
        """Bytes on the node."""
        return sum(file.stored_size for file in self.files)


@dataclass(frozen=True, slots=True)
class Admitted:
    """Uploads that may go together. `fresh`: what the node has to be given, each block once, by its
    CID; whatever else they are on-api keeps already."""

    uploads: Sequence[SmallUpload]
    fresh: Mapping[str, Block]


@dataclass(frozen=True, slots=True)
class Recorded:
    """The files of each upload that was admitted; None for one that could not go with the others,
    an error for one that may not be stored at all. `collecting`: garbage is about to be collected,
    and waits for the lease to end."""

    files: Sequence[Files | Unauthorized | None]
    collecting: bool


class BundleRecords:
    """The database's side of bundles."""

    def __init__(self, database: Database, idempotency: IdempotencyService) -> None:
        self._database = database
        self._idempotency = idempotency

    def admit(self, uploads: Sequence[SmallUpload]) -> Admitted:
        """Who may store what they send, as it looks by reading; the others are left out. What
        counts is that it is looked at again when it is recorded."""
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
        """Record uploads whose blocks the node has, in a bundle that is pinned, or has had.

        Raises `ServiceUnavailable` when the lease is not ours any more, `Conflict` for a lost race.
        """
        uploads = admitted.uploads
        with self._database.session_scope() as session:
            users = {upload.user_id for upload in uploads}
            usages = contents.usages_of(session, users)
            # Revoked while the bytes came, or with their users.
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
        """Files and answers."""
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
    """Those, in their order, for which there is room in their users' quotas, which they take."""
    return [u for u in uploads if u.user_id in rooms and rooms[u.user_id].take(u.size)]


def _is_collecting(session: Session, lease: HeldLease) -> bool:
    """Whether garbage is to be collected. The lease stays until this transaction's end."""
    mine = {"id": lease.id, "token": lease.token}
    row = session.connection().execute(holding_on(), mine).one_or_none()
    if row is None:
        raise ServiceUnavailable(GIVEN_UP)
    return bool(row.collecting)
