"""Changes of files' visibility: the bytes stream from the node through encryption or decryption to
the node again, and replace the old ones in one transaction.

After a crash the lease expires and the job is begun anew; what it had stored is found by its dead
lease, as after an upload.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import TypeVar

from anyio import CancelScope, to_thread
from sqlalchemy.orm import Session

from on_api.core.backoff import Backoff
from on_api.core.errors import (
    BlocksMissing,
    ContentDamaged,
    NodeError,
    NodeTimeout,
    NodeTruncated,
    NodeUnavailable,
    NotFound,
    OnApiError,
    QuotaExceeded,
)
from on_api.core.ipfs.port import Added
from on_api.core.models import File
from on_api.core.models.file import PRIVATE
from on_api.core.services.container import Services
from on_api.core.services.content import contents
from on_api.core.services.content.leases import UPLOAD, JobHolder, LeaseHandle
from on_api.core.services.content.reservations import Announced
from on_api.core.services.files import visibility
from on_api.core.services.files.files import get_file
from on_api.core.services.files.private_files import Audience, Sealing
from on_api.core.services.files.visibility import Job
from on_api.core.services.shared.renewal import renewed
from on_api.core.services.uploads.intake import FilePassage, Intake, IntakeLimits
from on_api.core.streams.blocks import Bytes

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""Age of a job after which no further attempt is made."""
REFUSALS_ALLOWED = 3
"""Attempts after which a job fails if the node can't give the stored bytes."""
RETRIES = Backoff(first=2.0, longest=600.0)
"""Pauses between attempts in seconds: the first, doubled each time up to the longest."""


class _Lost(Exception):
    """Ends an attempt whose job is another process's by now, or has been removed."""


class VisibilityWorker:
    """Worker for the changes of visibility, one in each process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._life = timedelta(seconds=services.settings.worker.lease_seconds)
        # The node ends a stream that stalls; and what was stored before was no larger.
        self._limits = IntakeLimits(max_file_size=2**63 - 1)

    async def step(self) -> bool:
        """Carry out one change that is due. Return whether there was one."""
        if not await self._in_database(visibility.any_due, write=False):
            return False
        job = await self._in_database(lambda session: visibility.claim(session, self._life))
        if job is None:
            return False
        await _Attempt(self, job).run()
        return True

    async def next_due(self) -> float | None:
        """Return the seconds until the next change is due; None if none waits."""
        return await self._in_database(visibility.next_due, write=False)

    async def _in_database(self, work: Callable[[Session], T], *, write: bool = True) -> T:
        def run() -> T:
            with self._services.database.session_scope(write=write) as session:
                return work(session)

        return await to_thread.run_sync(run)


class _Attempt:
    """One attempt at one change, with all its outcomes."""

    def __init__(self, worker: VisibilityWorker, job: Job) -> None:
        self._worker = worker
        self._services = worker._services
        self._in_database = worker._in_database
        self._job = job
        self._lost = False

    async def run(self) -> None:
        job = self._job
        try:
            async with renewed(self._renew, self._worker._life):
                await self._change()
        except _Lost:
            logger.info(
                "the visibility change of file %s was ended by another process", job.file_id
            )
        except asyncio.CancelledError:
            with CancelScope(shield=True):
                await self._put_back(None, pause=0, counted=False)
            raise
        except OnApiError as error:
            await self._end(error)

    def _renew(self) -> None:
        with self._services.database.session_scope() as session:
            self._lost |= not visibility.renew(session, self._job, self._worker._life)

    async def _change(self) -> None:
        job, services = self._job, self._services
        file = await self._in_database(
            lambda session: get_file(session, job.user_id, job.file_id), write=False
        )
        reading = await services.reader.read(file)
        announced, sealing = Announced(file.size, file.size), None
        if job.visibility == PRIVATE:
            audience = Audience()
            sealing = await services.private_files.seal(job.user_id, audience)
            announced = audience.announce(announced)
        await services.capacity.require(announced.least)
        lease = await to_thread.run_sync(
            services.leases.open, UPLOAD, JobHolder(job.user_id), announced
        )
        try:
            async with (
                services.leases.kept_alive(lease),
                reading.open(0, reading.size) as chunks,
            ):
                added = await self._store(file, lease, chunks, sealing)
                await self._record(lease, file.cid, added, sealing)
        except BaseException:
            with CancelScope(shield=True):
                await self._abandon(lease)
            raise

    async def _store(
        self, file: File, lease: LeaseHandle, chunks: AsyncIterator[Bytes], sealing: Sealing | None
    ) -> Added:
        services = self._services
        intake = Intake(
            lease, services.leases, services.capacity, services.hashers, self._worker._limits
        )
        passage = FilePassage(None if sealing is None else sealing.encryptor)
        with intake.passing(self._while_wanted(chunks), passage) as stream:
            added = await services.node.add(lease.sent(stream), pin_name=lease.pin_name)
        lease.confirm(added.cid, added.dag_size)
        if passage.digest.digest() != file.sha256:
            raise ContentDamaged
        return added

    async def _while_wanted(self, chunks: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]:
        async for chunk in chunks:
            if self._lost:
                raise _Lost
            yield chunk

    async def _record(
        self, lease: LeaseHandle, old_cid: str, added: Added, sealing: Sealing | None
    ) -> None:
        secured: dict[str, int] = {}
        while True:
            try:
                done = await self._in_database(
                    lambda session: self._services.visibility.finish(
                        session, self._job, lease, old_cid, added, sealing, secured
                    )
                )
            except contents.NotSecuredError as error:
                secured[error.cid] = await self._services.reconciler.secure_under(
                    lease, error.cid, added.dag_size
                )
            else:
                break
        if not done:
            raise _Lost

    async def _abandon(self, lease: LeaseHandle) -> None:
        """Give back the lease of a failed attempt; if that fails, its leftovers are found by the
        dead lease."""
        try:
            await to_thread.run_sync(self._services.leases.abandon, lease)
        except OnApiError as error:
            logger.warning("could not release lease %s: %s", lease.id, error.details)

    async def _end(self, error: OnApiError) -> None:
        """Schedule another attempt, or fail the job."""
        job = self._job
        try:
            if isinstance(error, NotFound):
                return  # the file is gone, and the job with it
            if job.age > PATIENCE or isinstance(error, QuotaExceeded) or self._is_refusal(error):
                logger.warning(
                    "the visibility change of file %s failed: %s", job.file_id, error.details
                )
                await self._in_database(lambda s: visibility.give_up(s, job, error.details))
                return
            await self._put_back(error.details, pause=RETRIES.jittered(job.attempts))
        except OnApiError as failure:
            # The database, most likely: the lease expires and another attempt begins.
            logger.warning(
                "a visibility change will be retried when its lease expires: %s", failure.details
            )

    def _is_refusal(self, error: OnApiError) -> bool:
        passing = isinstance(error, NodeUnavailable | NodeTimeout | NodeTruncated)
        lasting = isinstance(error, BlocksMissing | NodeError) and not passing
        return lasting and self._job.attempts >= REFUSALS_ALLOWED

    async def _put_back(self, details: str | None, *, pause: float, counted: bool = True) -> None:
        due_in = timedelta(seconds=pause)
        await self._in_database(
            lambda session: visibility.put_back(
                session, self._job, details, due_in=due_in, counted=counted
            )
        )
