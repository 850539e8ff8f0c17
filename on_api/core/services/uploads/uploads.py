"""Uploads: bytes stream from the client to the node, and become files when all of them are stored
and pinned.

No database connection is held while bytes flow: one short transaction before (the lease), one after
(the record).
"""

from __future__ import annotations

import json
import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial

from anyio import CancelScope, to_thread
from sqlalchemy.orm import Session

from on_api.core.errors import (
    BadRequest,
    Conflict,
    NotFound,
    OnApiError,
    PayloadTooLarge,
    Unauthorized,
)
from on_api.core.ipfs.formats.bundle import Block
from on_api.core.ipfs.formats.cid import CHUNK_BYTES
from on_api.core.ipfs.port import Added, IpfsNode, StoredUnpinned
from on_api.core.media_types import sniff
from on_api.core.metrics import Metrics
from on_api.core.models import Database, UserUsage
from on_api.core.services.accounts.access import Principal
from on_api.core.services.accounts.idempotency import (
    AlreadyAnswered,
    Answered,
    IdempotencyClaim,
    IdempotencyService,
    fingerprint,
)
from on_api.core.services.accounts.keys import keys_in_force, require_in_force
from on_api.core.services.content import contents, recorder
from on_api.core.services.content.capacity import Capacity
from on_api.core.services.content.leases import UPLOAD, LeaseHandle, LeaseService
from on_api.core.services.content.pin_reconciler import PinReconciler
from on_api.core.services.content.reservations import Announced
from on_api.core.services.files.files import FileFacts
from on_api.core.services.files.private_files import PrivateFiles
from on_api.core.services.shared.batching import Batcher
from on_api.core.services.traffic.metering import Charge, Kind, Meter
from on_api.core.services.uploads.bundle_records import SmallUpload
from on_api.core.services.uploads.bundling import Bundler
from on_api.core.services.uploads.intake import (
    FilePassage,
    HashedBody,
    Intake,
    IntakeLimits,
)
from on_api.core.services.uploads.stored_files import (
    MICROSECOND,
    IncomingFile,
    UploadedFile,
    facts_in,
)
from on_api.core.services.uploads.whole_file import WholeFile
from on_api.core.streams.blocks import Bytes

__all__ = ["IncomingFile", "Recording", "UploadService"]

logger = logging.getLogger(__name__)

NO_FILE = "No file was sent: name the form part `file`."


@dataclass(frozen=True, slots=True)
class Recording:
    """Claim on an Idempotency-Key, and the renderer of the answer to record."""

    claim: IdempotencyClaim
    render: Callable[[Sequence[FileFacts]], bytes]


_Send = Callable[[LeaseHandle, Intake], AsyncIterator[UploadedFile]]


@dataclass(frozen=True, slots=True)
class _Ended:
    """Upload whose bytes are on the node, to be recorded.

    `secured`: as for `recorder.lock_contents`.
    """

    user_id: uuid.UUID
    key_id: uuid.UUID
    lease: LeaseHandle
    stored: Sequence[UploadedFile]
    recording: Recording | None
    secured: dict[str, int] = field(default_factory=dict)


class UploadService:
    """Service that streams uploads to the node and records them."""

    def __init__(
        self,
        database: Database,
        node: IpfsNode,
        reconciler: PinReconciler,
        leases: LeaseService,
        capacity: Capacity,
        hashers: Executor,
        limits: IntakeLimits,
        metrics: Metrics,
        idempotency: IdempotencyService,
        private_files: PrivateFiles,
        meter: Meter,
        bundler: Bundler,
    ) -> None:
        self._database = database
        self._node = node
        self._reconciler = reconciler
        self._leases = leases
        self._capacity = capacity
        self._hashers = hashers
        self._limits = limits
        self._metrics = metrics
        self._idempotency = idempotency
        self._private_files = private_files
        self._meter = meter
        self._bundler = bundler
        self._stored = metrics.uploads.labels("stored")
        self._recording = Batcher(self._record_all)

    async def store_once(
        self,
        principal: Principal,
        incoming: AsyncIterator[IncomingFile],
        announced: Announced,
        attempt: IdempotencyClaim | Answered,
        render: Callable[[Sequence[FileFacts]], bytes],
    ) -> Sequence[FileFacts]:
        """Store files like `store`, under an Idempotency-Key: recorded together with the answer.

        `render` makes the answer's body. Raises `AlreadyAnswered` for a repeat, `Conflict` for
        another request with the same key: both only after its whole body was read, which decides
        it.
        """
        if isinstance(attempt, Answered):
            repeated = [
                (file, await HashedBody(file.body, self._limits).to_its_end())
                async for file in incoming
            ]
            await to_thread.run_sync(self._require_in_force, principal)
            raise AlreadyAnswered(attempt.for_repeat(*self._fingerprints(repeated)))
        async with self._idempotency.kept_alive(attempt):
            return await self.store(principal, incoming, announced, Recording(attempt, render))

    def _require_in_force(self, principal: Principal) -> None:
        with self._database.session_scope(write=False) as session:
            require_in_force(session, principal.key_id)

    async def store(
        self,
        principal: Principal,
        incoming: AsyncIterator[IncomingFile],
        announced: Announced,
        recording: Recording | None = None,
    ) -> Sequence[FileFacts]:
        """Store every incoming file, or none: they are recorded in one transaction at the end.

        An announced length that is too much is refused before a byte is read. Raises `BadRequest`
        when no file comes, `RequestTimeout` when the client stops sending, `PayloadTooLarge`,
        `QuotaExceeded`, `KeyLimitReached`, `InsufficientStorage` for too much, a `NodeError` when
        the node fails, `Unauthorized` when the key has ended meanwhile, what `PrivateFiles.seal`
        raises. What the node has pinned by then is listed by a dead lease, and removed by the
        worker.
        """
        await self._capacity.require(announced.least)
        try:
            files = await self._store(principal, incoming, announced, recording)
        except BaseException as error:
            self._count_failed(error)
            raise
        self._count_stored(principal, files)
        return files

    async def _store(
        self,
        principal: Principal,
        incoming: AsyncIterator[IncomingFile],
        announced: Announced,
        recording: Recording | None,
    ) -> Sequence[FileFacts]:
        most = announced.most
        try:
            # A key's own limit can't be settled in a bundle.
            if most is not None and principal.max_bytes is None and self._bundler.takes(most):
                with self._bundler.reserving_memory(most):
                    return await self._store_small(principal, incoming, most, recording)

            async def send(lease: LeaseHandle, intake: Intake) -> AsyncIterator[UploadedFile]:
                async for file in incoming:
                    yield await self._send(principal, file, lease, intake)

            return await self._store_by_itself(principal, announced, send, recording)
        except (Conflict, NotFound):
            # Rows of an account that is being removed may be missing already.
            await to_thread.run_sync(self._require_in_force, principal)
            raise

    def _count_failed(self, error: BaseException) -> None:
        reason = error.reason if isinstance(error, OnApiError) else "CLIENT_GONE"
        self._metrics.uploads.labels(reason).inc()

    def _count_stored(self, principal: Principal, files: Sequence[FileFacts]) -> None:
        self._stored.inc()
        key_id = principal.metered_key
        for file in files:
            charge = Charge(Kind.UPLOAD, principal.user_id, key_id, file_id=file.id, cid=file.cid)
            self._meter.received(charge, file.size)

    async def close(self) -> None:
        """Cancel the bundles under way."""
        await self._bundler.close()

    async def _store_by_itself(
        self, principal: Principal, announced: Announced, send: _Send, recording: Recording | None
    ) -> Sequence[FileFacts]:
        """Store the files that `send` yields, under a lease of their own."""
        lease = await self._leases.open_together(UPLOAD, principal, announced)
        intake = Intake(lease, self._leases, self._capacity, self._hashers, self._limits)
        stored: list[UploadedFile] = []
        try:
            async with self._leases.kept_alive(lease):
                async for file in send(lease, intake):
                    stored.append(file)
                if not stored:
                    raise BadRequest(NO_FILE)
                upload = _Ended(principal.user_id, principal.key_id, lease, stored, recording)
                files = await self._record_secured(upload)
                self._metrics.uploaded_bytes.inc(sum(file.stored_size for file in stored))
                return files
        except BaseException:
            with CancelScope(shield=True):
                await self._abandon(lease)
            raise

    async def _store_small(
        self,
        principal: Principal,
        incoming: AsyncIterator[IncomingFile],
        most: int,
        recording: Recording | None,
    ) -> Sequence[FileFacts]:
        """Read up to `most` bytes into memory, and store them with other small uploads."""
        taken = [await self._take(principal, file, most) async for file in incoming]
        if not taken:
            raise BadRequest(NO_FILE)
        # Names can't change from here on.
        files = [whole.as_stored() for whole in taken]
        sent = [(whole.cid, whole.block) for whole in taken]

        def alone() -> Awaitable[Sequence[FileFacts]]:
            return self._store_alone(principal, files, sent, recording)

        if not all(0 < len(block) <= CHUNK_BYTES for _, block in sent):
            return await alone()
        upload = SmallUpload(principal.user_id, principal.key_id, files, sent)
        if recording is not None:
            answer = partial(self._answer, files, recording)
            upload = replace(upload, claim=recording.claim, answer=answer)
        return await self._bundler.store(upload, alone)

    async def _store_alone(
        self,
        principal: Principal,
        files: Sequence[UploadedFile],
        sent: Sequence[Block],
        recording: Recording | None,
    ) -> Sequence[FileFacts]:
        """Store files that are in memory, not in a bundle."""

        async def send(lease: LeaseHandle, _intake: Intake) -> AsyncIterator[UploadedFile]:
            for file, (_, block) in zip(files, sent, strict=True):
                added = await self._add(_once(block), lease)
                yield replace(file, cid=added.cid, dag_size=added.dag_size)

        size = sum(len(block) for _, block in sent)
        return await self._store_by_itself(principal, Announced(size, size), send, recording)

    async def _take(self, principal: Principal, file: IncomingFile, most: int) -> WholeFile:
        plaintext = bytearray()
        async for chunk in file.body:
            plaintext += chunk
            if len(plaintext) > min(most, self._limits.max_file_size):
                raise PayloadTooLarge(f"The file exceeds {self._limits.max_file_size} bytes.")
        sealing, block = None, bytes(plaintext)
        if file.audience is not None:
            sealing = await self._private_files.seal(principal.user_id, file.audience)
            block = bytes(sealing.encryptor.update(block) + sealing.encryptor.finish())
        return WholeFile.of(file, bytes(plaintext), block, sealing)

    async def _send(
        self, principal: Principal, file: IncomingFile, lease: LeaseHandle, intake: Intake
    ) -> UploadedFile:
        sealing = None
        if file.audience is not None:
            sealing = await self._private_files.seal(principal.user_id, file.audience)
        passage = FilePassage(None if sealing is None else sealing.encryptor)
        with intake.passing(file.body, passage) as stream:
            added = await self._add(stream, lease)
        return UploadedFile(
            incoming=file,
            cid=added.cid,
            stored_size=added.size,
            dag_size=added.dag_size,
            size=passage.size,
            sha256=passage.digest.digest(),
            media_type=file.media_type or sniff(file.name, passage.head),
            sealing=sealing,
        )

    async def _add(self, source: AsyncIterator[Bytes], lease: LeaseHandle) -> Added:
        try:
            added = await self._node.add(lease.sent(source), pin_name=lease.pin_name)
        except StoredUnpinned as error:
            # The same content was removed between the node's pin and our check of it.
            added = error.added
            await self._reconciler.secure_under(lease, added.cid, added.dag_size)
        lease.confirm(added.cid, added.dag_size)
        return added

    async def _record_secured(self, upload: _Ended) -> Sequence[FileFacts]:
        """Record an upload, after pinning again what was being unpinned while it was sent."""
        while True:
            try:
                return await self._recording.do(upload.user_id, upload)
            except contents.NotSecuredError as error:
                generation = await self._reconciler.secure_under(upload.lease, error.cid)
                upload.secured[error.cid] = generation

    def _record_all(self, uploads: Sequence[_Ended]) -> list[Sequence[FileFacts]]:
        """Record uploads of one user, all or none."""
        user_id = uploads[0].user_id
        with self._database.session_scope() as session:
            usage = contents.lock_usage(session, user_id)
            keys = {upload.key_id for upload in uploads}
            if len(keys_in_force(session, keys)) < len(keys):
                raise Unauthorized  # revoked while the bytes came, or with its user
            sizes = {file.cid: file.dag_size for upload in uploads for file in upload.stored}
            # The latest check of a content counts.
            secured = dict(sorted(look for each in uploads for look in each.secured.items()))
            locked = recorder.lock_contents(session, sizes, secured=secured, own_pins=sizes)
            locked.require_secured()
            references = Counter((user_id, f.cid) for upload in uploads for f in upload.stored)
            recorder.add_references(session, {user_id: usage}, references, locked)
            return [self._record(session, usage, upload) for upload in uploads]

    def _record(self, session: Session, usage: UserUsage, upload: _Ended) -> Sequence[FileFacts]:
        moments = contents.next_moments(usage, len(upload.stored), step=MICROSECOND)
        rows = [
            file.columns(usage.user_id, moment)
            for file, moment in zip(upload.stored, moments, strict=True)
        ]
        recorder.record_files(session, {usage.user_id: usage}, rows)
        files = [facts_in(row) for row in rows]
        stored_size = sum(file.stored_size for file in upload.stored)
        with session.no_autoflush:  # changes to `usage` are one statement, at the end
            self._leases.close(session, upload.lease, usage, stored_size)
        if upload.recording is not None:
            session.flush()
            answer = self._answer(upload.stored, upload.recording, files)
            self._idempotency.finish(session, upload.recording.claim, answer)
        return files

    def _answer(
        self, stored: Sequence[UploadedFile], recording: Recording, files: Sequence[FileFacts]
    ) -> Answered:
        sent = [(file.incoming, file.sha256) for file in stored]
        return Answered(self._fingerprints(sent)[0], 201, recording.render(files))

    def _fingerprints(self, files: Sequence[tuple[IncomingFile, bytes]]) -> Sequence[bytes]:
        """Return an upload's fingerprints from its files, each with its SHA-256: one for each
        master secret here, the present one's first. Without a passphrase all are the same."""
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

    async def _abandon(self, lease: LeaseHandle) -> None:
        try:
            await to_thread.run_sync(self._leases.abandon, lease)
        except OnApiError:
            # It expires by itself; the error is on its way to the client.
            logger.warning("could not release lease %s", lease.id)


async def _once(block: bytes) -> AsyncIterator[bytes]:
    yield block


def _describe(file: IncomingFile, sha256: bytes, passphrase: bytes) -> bytes:
    """Return what identifies an uploaded file in a repeated request, whatever boundaries or chunks
    were."""
    meta = json.dumps(file.meta, sort_keys=True)
    audience = file.audience
    readers = ("",) if audience is None else (audience.sealed_for, *audience.recipients)
    return fingerprint(
        file.name, file.media_type or "", fingerprint(*readers), meta, sha256, passphrase
    )
