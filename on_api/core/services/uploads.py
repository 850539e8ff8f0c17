"""Uploads: bytes stream from the client to the node, and become files when all of them lie there,
pinned.

No database connection is held while bytes flow: one short transaction before (the lease), one after
(the record).
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from anyio import CancelScope, to_thread
from sqlalchemy.orm import Session

from on_api.core.blocks import Bytes
from on_api.core.errors import BadRequest, OnApiError, PayloadTooLarge, Unauthorized
from on_api.core.ipfs.client import Added, IpfsNode, StoredUnpinned
from on_api.core.media_types import sniff
from on_api.core.metrics import Metrics
from on_api.core.models import Database, File, User, UserUsage
from on_api.core.models.database import new_id
from on_api.core.services import contents, events
from on_api.core.services.access import Principal
from on_api.core.services.capacity import Capacity
from on_api.core.services.idempotency import (
    AlreadyAnswered,
    Answered,
    Claim,
    IdempotencyService,
    fingerprint,
)
from on_api.core.services.intake import FilePassage, Intake, IntakeLimits, blocks
from on_api.core.services.keeper import Keeper
from on_api.core.services.leases import UPLOAD, LeaseHandle, LeaseService
from on_api.core.services.metering import Charge, Kind, Meter
from on_api.core.services.private_files import Audience, PrivateFiles, Sealing, columns_of
from on_api.core.services.reservations import Announced
from on_api.core.services.together import Together

logger = logging.getLogger(__name__)

MICROSECOND = timedelta(microseconds=1)
"""In which a file's `created_at` is counted."""


@dataclass
class IncomingFile:
    """One file as it comes in. `media_type=None`: find out. A private one has an `audience`.

    `name` and `meta` may still change until the last byte of the whole upload is read.
    """

    name: str
    media_type: str | None
    meta: dict[str, Any]
    body: AsyncIterator[Bytes]
    audience: Audience | None = None


@dataclass(frozen=True, slots=True)
class _Stored:
    incoming: IncomingFile
    added: Added
    size: int
    sha256: bytes
    media_type: str
    sealing: Sealing | None


@dataclass(frozen=True, slots=True)
class Recording:
    """Under which claim to record which answer."""

    claim: Claim
    render: Callable[[Sequence[File]], bytes]


@dataclass(frozen=True, slots=True)
class _Ended:
    """An upload whose bytes lie on the node, to be recorded.

    `secured`: as `contents.add_reference` wants it.
    """

    user_id: uuid.UUID
    lease: LeaseHandle
    stored: Sequence[_Stored]
    recording: Recording | None
    secured: dict[str, int] = field(default_factory=dict)


class UploadService:
    """Streams uploads to the node and records them."""

    def __init__(
        self,
        database: Database,
        node: IpfsNode,
        keeper: Keeper,
        leases: LeaseService,
        capacity: Capacity,
        hashers: Executor,
        limits: IntakeLimits,
        metrics: Metrics,
        idempotency: IdempotencyService,
        private_files: PrivateFiles,
        meter: Meter,
    ) -> None:
        self._database = database
        self._node = node
        self._keeper = keeper
        self._leases = leases
        self._capacity = capacity
        self._hashers = hashers
        self._limits = limits
        self._metrics = metrics
        self._idempotency = idempotency
        self._private_files = private_files
        self._meter = meter
        self._recording = Together(self._record_all)

    async def store_once(
        self,
        principal: Principal,
        incoming: AsyncIterator[IncomingFile],
        announced: Announced,
        attempt: Claim | Answered,
        render: Callable[[Sequence[File]], bytes],
    ) -> Sequence[File]:
        """Like `store`, under an Idempotency-Key: what is stored and its answer are one
        transaction.

        `render` makes the answer's body. Raises `AlreadyAnswered` for a repeat, `Conflict` when it
        isn't one: both only after its whole body was read, since that is what tells.
        """
        if isinstance(attempt, Answered):
            repeated = [(file, await self._look_at(file)) async for file in incoming]
            raise AlreadyAnswered(attempt.for_repeat(*self._fingerprints(repeated)))
        async with self._idempotency.kept_alive(attempt):
            return await self.store(principal, incoming, announced, Recording(attempt, render))

    async def _look_at(self, file: IncomingFile) -> bytes:
        digest, size = hashlib.sha256(), 0
        async for block in blocks(file.body, self._limits):
            size += len(block)
            if size > self._limits.max_file_size:
                raise PayloadTooLarge
            digest.update(block)
        return digest.digest()

    async def store(
        self,
        principal: Principal,
        incoming: AsyncIterator[IncomingFile],
        announced: Announced,
        recording: Recording | None = None,
    ) -> Sequence[File]:
        """Store every incoming file, or none: they are recorded in one transaction at the end.

        What is announced is refused before a byte is read where it can't be had. Raises
        `BadRequest` when nothing comes, `RequestTimeout` when the client stops sending,
        `PayloadTooLarge`, `QuotaExceeded`, `KeyLimitReached`, `InsufficientStorage` for too much, a
        `NodeError` when the node fails, what `PrivateFiles.seal` raises. What the node has pinned
        by then is left with a dead lease and no record.
        """
        await self._capacity.require(announced.least)
        lease = await self._leases.open_together(UPLOAD, principal, announced)
        intake = Intake(lease, self._leases, self._capacity, self._hashers, self._limits)
        started = False
        try:
            async with self._leases.kept_alive(lease):
                stored: list[_Stored] = []
                async for file in incoming:
                    started = True
                    stored.append(await self._send(principal, file, lease, intake))
                if not stored:
                    raise BadRequest("No file was sent: name the part `file`.")
                ended = _Ended(principal.user_id, lease, stored, recording)
                files = await self._record_secured(ended)
        except BaseException as error:
            reason = error.reason if isinstance(error, OnApiError) else "CLIENT_GONE"
            self._metrics.uploads.labels(reason).inc()
            with CancelScope(shield=True):
                await self._abandon(lease, pinned=started)
            raise
        self._metrics.uploads.labels("stored").inc()
        self._metrics.uploaded_bytes.inc(intake.received)
        key_id = principal.metered_key
        for row in files:
            charge = Charge(Kind.UPLOAD, row.user_id, key_id, file_id=row.id, cid=row.cid)
            self._meter.received(charge, row.size)
        return files

    async def _send(
        self, principal: Principal, file: IncomingFile, lease: LeaseHandle, intake: Intake
    ) -> _Stored:
        sealing = None
        if file.audience is not None:
            sealing = await self._private_files.seal(principal.user_id, file.audience)
        passage = FilePassage(None if sealing is None else sealing.encryptor)
        try:
            added = await self._node.add(
                intake.through(file.body, passage), pin_name=lease.pin_name
            )
        except StoredUnpinned as error:
            # The removal of the same content has come between the node's pin and our look at it.
            added = error.added
            await self._keeper.secure(added.cid, lease.id)
        media_type = file.media_type or sniff(file.name, passage.head)
        return _Stored(file, added, passage.size, passage.digest.digest(), media_type, sealing)

    async def _record_secured(self, upload: _Ended) -> Sequence[File]:
        """Record it, after making sure of whatever was being unpinned while it was sent."""
        while True:
            try:
                return await self._recording.do(upload.user_id, upload)
            except contents.NotSecuredError as error:
                generation = await self._keeper.secure(error.cid, upload.lease.id)
                upload.secured[error.cid] = generation

    def _record_all(self, uploads: Sequence[_Ended]) -> list[Sequence[File]]:
        """Record uploads of one user, all or none."""
        user_id = uploads[0].user_id
        with self._database.session_scope() as session:
            usage = contents.lock_usage(session, user_id)
            if session.get_one(User, user_id).deleted_at is not None:
                raise Unauthorized  # deleted while the bytes came
            # In order of CID, as everyone locks content.
            added = [(item.added, upload.secured) for upload in uploads for item in upload.stored]
            for one, secured in sorted(added, key=lambda pair: pair[0].cid):
                contents.add_reference(session, usage, one.cid, one.dag_size, secured)
            return [self._record(session, usage, upload) for upload in uploads]

    def _record(self, session: Session, usage: UserUsage, upload: _Ended) -> Sequence[File]:
        files = [
            File(
                id=new_id(),
                user_id=usage.user_id,
                cid=item.added.cid,
                name=item.incoming.name,
                size=item.size,
                media_type=item.media_type,
                sha256=item.sha256,
                meta=item.incoming.meta,
                created_at=contents.next_moment(usage, step=MICROSECOND),
                **columns_of(item.sealing, item.added.size),
            )
            for item in upload.stored
        ]
        usage.file_count += len(files)
        session.add_all(files)
        for file in files:
            events.record(session, file.user_id, "file.created", file.id, cid=file.cid)
        stored_size = sum(item.added.size for item in upload.stored)
        with session.no_autoflush:  # what changes in `usage` is one statement, at the end
            self._leases.close(session, upload.lease, usage, stored_size)
        if upload.recording is not None:
            session.flush()
            sent = [(item.incoming, item.sha256) for item in upload.stored]
            answer = Answered(self._fingerprints(sent)[0], 201, upload.recording.render(files))
            self._idempotency.finish(session, upload.recording.claim, answer)
        return files

    def _fingerprints(self, files: Sequence[tuple[IncomingFile, bytes]]) -> Sequence[bytes]:
        """Of an upload of files, each with its SHA-256: one for each master secret that is here,
        the present one's first. Without a passphrase all are the same."""
        digests = [self._private_files.passphrase_digests(file.audience) for file, _ in files]
        return [
            fingerprint(
                *(
                    _describe(file, sha256, passphrase)
                    for (file, sha256), passphrase in zip(files, passphrases, strict=True)
                )
            )
            for passphrases in zip(*digests, strict=True)
        ]

    async def _abandon(self, lease: LeaseHandle, *, pinned: bool) -> None:
        try:
            await to_thread.run_sync(lambda: self._leases.abandon(lease, pinned=pinned))
        except OnApiError:
            # It dies by itself; the reason of the failure is on its way to the client.
            logger.warning("could not give back lease %s", lease.id)


def _describe(file: IncomingFile, sha256: bytes, passphrase: bytes) -> bytes:
    """What makes two uploads of a file the same request, whatever their boundaries or chunks
    were."""
    meta = json.dumps(file.meta, sort_keys=True)
    audience = file.audience
    readers = ("",) if audience is None else (audience.sealed_for, *audience.recipients)
    return fingerprint(
        file.name, file.media_type or "", fingerprint(*readers), meta, sha256, passphrase
    )
