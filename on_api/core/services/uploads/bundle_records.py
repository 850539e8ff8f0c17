"""The database's side of a bundle: who may go with it, before its files are stored, and their
records after, in one transaction. Many users' uploads in one; rows by the hundred, so plain
statements.

Who can't go with the others is left out, and told so: their own errors are found out alone.
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any

from sqlalchemy import Row
from sqlalchemy.orm import Session

from on_api.core.errors import ServiceUnavailable, Unauthorized
from on_api.core.ipfs.formats.bundle import Block, Bundle
from on_api.core.models import Database
from on_api.core.services.accounts.idempotency import Answered, Claim, IdempotencyService
from on_api.core.services.accounts.keys import keys_in_force
from on_api.core.services.content import contents
from on_api.core.services.content.bulk import hold, lock_contents, stamp
from on_api.core.services.content.leases import GIVEN_UP
from on_api.core.services.content.standing_lease import HeldLease
from on_api.core.services.content.statements import (
    FILE_COLUMNS,
    NEW_EVENTS,
    NEW_FILES,
    accounts_of,
    holding_on,
    keeping,
    settling,
)
from on_api.core.services.files.files import FileFacts
from on_api.core.services.uploads.stored_files import MICROSECOND, StoredFile, facts_in

_Account = Row[uuid.UUID, int, int, datetime | None, int | None]
_Accounts = dict[uuid.UUID, _Account]
"""Of users: their counters and quota."""
_in_order = itemgetter(*FILE_COLUMNS)
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
            accounts = _accounts(session, uploads, lock=False)
            admitted = _that_fit(accounts, uploads)
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
            accounts = _accounts(session, uploads, lock=True)
            # Revoked while the bytes came, or with their users.
            keys = keys_in_force(session, {upload.key_id for upload in uploads})
            allowed = [upload for upload in uploads if upload.key_id in keys]
            claims = [upload.claim for upload in allowed if upload.claim is not None]
            held = self._idempotency.lock(session, claims)
            fit = [upload for upload in allowed if upload.claim is None or upload.claim.id in held]
            fit = _that_fit(accounts, fit)
            sizes = {file.cid: file.dag_size for upload in fit for file in upload.files}
            there = lock_contents(session, sizes, bundle, admitted.fresh)
            fit = [u for u in fit if all(file.cid in there.sizes for file in u.files)]
            references = Counter((u.user_id, file.cid) for u in fit for file in u.files)
            charged = hold(session, references, there)
            recorded = self._insert(session, accounts, fit)
            _settle(session, accounts, recorded, charged)
            stamp(session, bundle, there, {cid for _, cid in charged})
            collecting = _is_collecting(session, lease)
            outcomes = [
                recorded.get(upload) if upload.key_id in keys else Unauthorized()
                for upload in uploads
            ]
            return Recorded(outcomes, collecting)

    def _insert(
        self, session: Session, accounts: _Accounts, uploads: Sequence[SmallUpload]
    ) -> dict[SmallUpload, Files]:
        """Files, events and answers."""
        moments = {
            user_id: contents.moments_after(account.last_created_at, step=MICROSECOND)
            for user_id, account in accounts.items()
        }
        rows: list[Sequence[Any]] = []
        happened: list[Sequence[Any]] = []
        recorded: dict[SmallUpload, Files] = {}
        for upload in uploads:
            user_id, moment = upload.user_id, moments[upload.user_id]
            own = []
            for file in upload.files:
                columns = file.columns(user_id, next(moment))
                shown = facts_in(columns)
                own.append(shown)
                rows.append(_in_order(columns))
                data = {"cid": file.cid}
                happened.append((user_id, "file.created", shown.id, data, shown.created_at))
            recorded[upload] = own
        if rows:
            connection = session.connection()
            NEW_FILES.execute(connection, rows)
            NEW_EVENTS.execute(connection, happened)
        for upload, files in recorded.items():
            if upload.claim is not None and upload.answer is not None:
                self._idempotency.finish(session, upload.claim, upload.answer(files))
        return recorded


def _accounts(session: Session, uploads: Iterable[SmallUpload], *, lock: bool) -> _Accounts:
    """The counters of everyone who is there, locked in the order that all keep."""
    users = list({upload.user_id for upload in uploads})
    found = session.connection().execute(accounts_of(lock=lock), {"users": users})
    return {row.user_id: row for row in found}


def _that_fit(accounts: _Accounts, uploads: Iterable[SmallUpload]) -> list[SmallUpload]:
    """Those, in their order, for which there is room in their users' quotas."""
    taken: Counter[uuid.UUID] = Counter()
    fit = []
    for upload in uploads:
        account = accounts.get(upload.user_id)
        if account is None:
            continue
        quota, size = account.storage_quota, taken[upload.user_id] + upload.size
        if quota is None or account.storage_bytes + account.reserved_bytes + size <= quota:
            taken[upload.user_id] = size
            fit.append(upload)
    return fit


def _is_collecting(session: Session, lease: HeldLease) -> bool:
    """Whether garbage is to be collected. The lease stays until this transaction's end."""
    mine = {"id": lease.id, "token": lease.token}
    row = session.connection().execute(holding_on(), mine).one_or_none()
    if row is None:
        raise ServiceUnavailable(GIVEN_UP)
    return bool(row.collecting)


def _settle(
    session: Session,
    accounts: _Accounts,
    recorded: dict[SmallUpload, Files],
    charged: dict[tuple[uuid.UUID, str], int],
) -> None:
    """Bring the users' counters up to date."""
    sizes: Counter[uuid.UUID] = Counter()
    for (user_id, _), size in charged.items():
        sizes[user_id] += size
    files: defaultdict[uuid.UUID, list[FileFacts]] = defaultdict(list)
    for upload, own in recorded.items():
        files[upload.user_id] += own
    changes = [
        {
            "owner": user_id,
            "added": len(files[user_id]),
            "stored": sizes[user_id],
            "last": files[user_id][-1].created_at,
        }
        for user_id in accounts
        if user_id in files
    ]
    if changes:
        session.connection().execute(settling(), changes)
