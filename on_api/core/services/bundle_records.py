"""The two transactions of a bundle: what its files may take before they are stored, and their
records after. Many users' uploads in one; rows by the hundred, so plain statements.

Who can't go with the others is left out, and told so: their own errors are found out alone.
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, select, update
from sqlalchemy.orm import Session

from on_api.core.errors import ServiceUnavailable
from on_api.core.ipfs.bundle import Block, Bundle
from on_api.core.models import Database, Event, File, Lease, User, UserUsage
from on_api.core.models.database import new_id, utc_now
from on_api.core.services import contents, maintenance, reservations
from on_api.core.services.bundle_contents import hold, lock_contents, stamp
from on_api.core.services.bundle_statements import (
    inserting,
    settling,
)
from on_api.core.services.idempotency import Answered, Claim, IdempotencyService
from on_api.core.services.leases import GIVEN_UP, UPLOAD
from on_api.core.services.pin_names import PinNames
from on_api.core.services.stored_files import MICROSECOND, StoredFile

_Account = Row[uuid.UUID, int, int, datetime | None, int | None]
_Accounts = dict[uuid.UUID, _Account]
"""Of users: their counters and quota."""


@dataclass(frozen=True, slots=True, eq=False)
class SmallUpload:
    """One request's files, whole in memory: the block of each is what the node is to have.

    `claim` and `answer` where the answer is to be recorded with them.
    """

    user_id: uuid.UUID
    files: Sequence[StoredFile]
    blocks: Sequence[Block]
    claim: Claim | None = None
    answer: Callable[[Sequence[File]], Answered] | None = None

    @property
    def size(self) -> int:
        """Bytes on the node."""
        return sum(file.stored_size for file in self.files)


@dataclass(frozen=True, slots=True)
class Opened:
    """Uploads that may go on together, under one lease for each user. `kept`: CIDs that on-api
    keeps already. Pins are called `pin_name`, after `job`, the first of the leases."""

    uploads: Sequence[SmallUpload]
    job: uuid.UUID
    pin_name: str
    leases: Sequence[dict[str, Any]]
    kept: Collection[str]

    def fresh_blocks(self) -> list[Block]:
        """What the node has to be given: each block once."""
        fresh = {
            file.cid: block
            for upload in self.uploads
            for file, block in zip(upload.files, upload.blocks, strict=True)
            if file.cid not in self.kept
        }
        return list(fresh.values())


class BundleRecords:
    """The database's side of bundles. Leases live for `life`."""

    def __init__(
        self,
        database: Database,
        names: PinNames,
        idempotency: IdempotencyService,
        life: timedelta,
    ) -> None:
        self._database = database
        self._names = names
        self._idempotency = idempotency
        self.life = life

    def open(self, uploads: Sequence[SmallUpload]) -> Opened:
        """Commit leases, and what they reserve, for work that is about to begin.

        Whoever may not store all that they send is left out. Raises `ServiceUnavailable` while the
        node is being tidied up.
        """
        job = new_id()
        pin_name = self._names.of(job)  # the very first name needs a transaction of its own
        wanted: Counter[uuid.UUID] = Counter()
        for upload in uploads:
            wanted[upload.user_id] += upload.size
        with self._database.session_scope() as session:
            maintenance.require_no_collection(session)
            is_there = (User.id.in_(wanted), User.deleted_at.is_(None))
            quotas = dict(
                session.execute(select(User.id, User.storage_quota).where(*is_there)).all()
            )
            now = utc_now()
            leases: list[dict[str, Any]] = []
            for user_id in sorted(quotas):
                quota, size = quotas[user_id], wanted[user_id]
                if quota is not None and not reservations.reserve_at_once(
                    session, user_id, quota, size
                ):
                    continue
                leases.append(
                    {
                        "id": new_id() if leases else job,
                        "kind": UPLOAD,
                        "user_id": user_id,
                        "token": new_id(),
                        "lease_until": now + self.life,
                        "reserved_bytes": 0 if quota is None else size,
                        "created_at": now,
                    }
                )
            if leases:
                session.execute(inserting(Lease), leases)
            going = {lease["user_id"] for lease in leases}
            admitted = [upload for upload in uploads if upload.user_id in going]
            cids = {file.cid for upload in admitted for file in upload.files}
            kept = set(contents.kept_sizes(session, cids))
        return Opened(admitted, job, pin_name, leases, kept)

    def renew(self, opened: Opened) -> None:
        """Keep the leases for another life."""
        with self._database.session_scope() as session:
            session.execute(
                update(Lease)
                .where(*_are(opened.leases))
                .values(lease_until=utc_now() + self.life)
                .execution_options(synchronize_session=False)
            )

    def abandon(self, opened: Opened) -> None:
        """Give everything up. The dead leases stay: by the first one a pin is found."""
        with self._database.session_scope() as session:
            _lock_accounts(session, opened)
            dead = session.execute(
                update(Lease)
                .where(*_are(opened.leases))
                .values(lease_until=utc_now(), reserved_bytes=0)
                .returning(Lease.id)
                .execution_options(synchronize_session=False)
            )
            ours = set(dead.scalars())
            for lease in opened.leases:
                if lease["id"] in ours:
                    session.execute(
                        update(UserUsage)
                        .where(UserUsage.user_id == lease["user_id"])
                        .values(reserved_bytes=UserUsage.reserved_bytes - lease["reserved_bytes"])
                        .execution_options(synchronize_session=False)
                    )

    def record(self, opened: Opened, bundle: Bundle | None) -> list[Sequence[File] | None]:
        """Record uploads whose blocks the node has, in a bundle that is pinned or as `kept`.

        Returns the files of each; None for one that can't go with the others. Raises
        `ServiceUnavailable` when the leases are not ours any more, `Conflict` for a lost race.
        """
        with self._database.session_scope() as session:
            accounts = _lock_accounts(session, opened)
            _end_leases(session, opened)
            claims = [upload.claim for upload in opened.uploads if upload.claim is not None]
            held = self._idempotency.lock(session, claims)
            fit = [
                upload
                for upload in opened.uploads
                if _has_room(accounts.get(upload.user_id))
                and (upload.claim is None or upload.claim.id in held)
            ]
            sizes = {file.cid: file.dag_size for upload in fit for file in upload.files}
            there = lock_contents(session, sizes, bundle)
            fit = [u for u in fit if all(file.cid in there.sizes for file in u.files)]
            references = Counter((u.user_id, file.cid) for u in fit for file in u.files)
            charged = hold(session, references, there)
            recorded = self._insert(session, accounts, fit)
            _settle(session, opened, accounts, recorded, charged)
            stamp(session, bundle, there, {cid for _, cid in charged})
            return [recorded.get(upload) for upload in opened.uploads]

    def _insert(
        self, session: Session, accounts: _Accounts, uploads: Sequence[SmallUpload]
    ) -> dict[SmallUpload, Sequence[File]]:
        """Files, events and answers."""
        moments = {
            user_id: contents.moments_after(account.last_created_at, step=MICROSECOND)
            for user_id, account in accounts.items()
        }
        columns: list[dict[str, Any]] = []
        recorded: dict[SmallUpload, Sequence[File]] = {}
        for upload in uploads:
            moment = moments[upload.user_id]
            own = [file.columns(upload.user_id, next(moment)) for file in upload.files]
            columns += own
            recorded[upload] = [File(**each) for each in own]
        if columns:
            session.execute(inserting(File), columns)
            session.execute(inserting(Event), [_created(each) for each in columns])
        for upload, files in recorded.items():
            if upload.claim is not None and upload.answer is not None:
                self._idempotency.finish(session, upload.claim, upload.answer(files))
        return recorded


def _lock_accounts(session: Session, opened: Opened) -> _Accounts:
    """The counters of everyone who is there, locked in the order that all keep."""
    users = [lease["user_id"] for lease in opened.leases]
    found = session.execute(
        select(
            UserUsage.user_id,
            UserUsage.storage_bytes,
            UserUsage.reserved_bytes,
            UserUsage.last_created_at,
            User.storage_quota,
        )
        .join(User, User.id == UserUsage.user_id)
        .where(UserUsage.user_id.in_(users), User.deleted_at.is_(None))
        .order_by(UserUsage.user_id)
        .with_for_update(of=UserUsage)
    )
    return {row.user_id: row for row in found}


def _has_room(account: _Account | None) -> bool:
    """Whether they are there, and what they have reserved is still within their quota."""
    if account is None:
        return False
    quota = account.storage_quota
    return quota is None or account.storage_bytes + account.reserved_bytes <= quota


def _end_leases(session: Session, opened: Opened) -> None:
    ended = session.execute(
        delete(Lease)
        .where(*_are(opened.leases))
        .returning(Lease.id)
        .execution_options(synchronize_session=False)
    )
    if len(ended.all()) != len(opened.leases):
        raise ServiceUnavailable(GIVEN_UP)


def _settle(
    session: Session,
    opened: Opened,
    accounts: _Accounts,
    recorded: dict[SmallUpload, Sequence[File]],
    charged: dict[tuple[uuid.UUID, str], int],
) -> None:
    """Bring the users' counters up to date, and give back what was reserved."""
    sizes: Counter[uuid.UUID] = Counter()
    for (user_id, _), size in charged.items():
        sizes[user_id] += size
    files: defaultdict[uuid.UUID, list[File]] = defaultdict(list)
    for upload, own in recorded.items():
        files[upload.user_id] += own
    changes = [
        {
            "owner": lease["user_id"],
            "added": len(files[lease["user_id"]]),
            "stored": sizes[lease["user_id"]],
            "given_back": lease["reserved_bytes"],
            "last": _last_moment(files[lease["user_id"]], accounts[lease["user_id"]]),
        }
        for lease in opened.leases
        if lease["user_id"] in accounts
    ]
    if changes:
        session.connection().execute(
            settling(),
            changes,
        )


def _last_moment(files: Sequence[File], account: _Account) -> datetime | None:
    return files[-1].created_at if files else account.last_created_at


def _created(file: dict[str, Any]) -> dict[str, Any]:
    return {
        "user_id": file["user_id"],
        "kind": "file.created",
        "subject_id": file["id"],
        "data": {"cid": file["cid"]},
        "created_at": file["created_at"],
    }


def _are(leases: Iterable[dict[str, Any]]) -> tuple[Any, Any]:
    """Where the rows are these leases, and still ours: ids and tokens are never anybody else's."""
    rows = list(leases)
    return (
        Lease.id.in_([lease["id"] for lease in rows]),
        Lease.token.in_([lease["token"] for lease in rows]),
    )
