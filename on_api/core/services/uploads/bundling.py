"""Bundling of small uploads that arrive at the same moment: their blocks go to the node in one
request, under one pin, their records into one transaction.

No upload waits for others to come. One that arrives alone is stored alone, with a pin of its own;
uploads that arrive while others are under way are gathered and go next. No client is told of
success before its own record is committed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from anyio import to_thread

from on_api.core.errors import Conflict, Unauthorized
from on_api.core.ipfs.formats.bundle import MOST_LINKS, Bundle, make_bundle
from on_api.core.ipfs.port import IpfsNode
from on_api.core.metrics import Metrics
from on_api.core.models.database import new_id
from on_api.core.services.content.standing_lease import HeldLease, StandingLease
from on_api.core.services.files.files import FileFacts
from on_api.core.services.uploads.bundle_records import Admitted, BundleRecords, SmallUpload
from on_api.core.tracing import detached

MOST_HELD_BYTES = 32 * 1024 * 1024
"""Most bytes of small uploads in memory; beyond it further ones are streamed."""
MOST_BUNDLE_BYTES = 8 * 1024 * 1024
"""Most bytes of the blocks in one bundle."""
REQUESTS_AT_ONCE = 2
"""Most simultaneous requests to the node."""
SOME, ENOUGH = 12, 16
"""Waiting uploads that start a bundle: while another one is recorded, and while the node is busy
with a request."""
BUNDLES_AT_ONCE = 3
"""Most bundles under way, including those that are being recorded."""

Alone = Callable[[], Awaitable[Sequence[FileFacts]]]


class _Waiting:
    """An upload with its outcome: its files, or None if it is to go alone."""

    __slots__ = ("future", "upload")

    def __init__(self, upload: SmallUpload) -> None:
        self.upload = upload
        self.future: asyncio.Future[Sequence[FileFacts] | None] = (
            asyncio.get_running_loop().create_future()
        )


class Bundler:
    """Bundler of one process's small uploads. `largest`: most bytes of one; 0: none is bundled."""

    def __init__(
        self,
        node: IpfsNode,
        records: BundleRecords,
        lease: StandingLease,
        metrics: Metrics,
        largest: int,
    ) -> None:
        self._node = node
        self._records = records
        self._lease = lease
        self._metrics = metrics
        self._largest = largest
        self._held = 0
        self._waiting: deque[_Waiting] = deque()
        self._alone = 0
        self._storing = 0
        self._together: set[asyncio.Task[None]] = set()

    def takes(self, most: int | None) -> bool:
        """Return whether an upload of at most `most` bytes may be held in memory now."""
        return most is not None and most <= self._largest and self._held + most <= MOST_HELD_BYTES

    @contextmanager
    def reserving_memory(self, most: int) -> Iterator[None]:
        """Count `most` bytes as held in memory while the block runs."""
        self._held += most
        try:
            yield
        finally:
            self._held -= most

    async def store(self, upload: SmallUpload, alone: Alone) -> Sequence[FileFacts]:
        """Store an upload in a bundle with others, or by `alone`. Raises what that raises, or the
        error of the whole bundle: a `NodeError`, `DatabaseUnavailable`, `ServiceUnavailable`; or
        `Unauthorized` when its key has ended meanwhile."""
        if not self._waiting and self._may_begin():
            return await self.by_itself(alone)
        waiting = _Waiting(upload)
        self._waiting.append(waiting)
        self._begin()
        files = await waiting.future
        return await self.by_itself(alone) if files is None else files

    async def close(self) -> None:
        """Cancel all waiting and running uploads, and end the lease."""
        while self._waiting:
            self._waiting.popleft().future.cancel()
        for task in self._together:
            task.cancel()
        await asyncio.gather(*self._together, return_exceptions=True)
        await self._lease.close()

    async def by_itself(self, alone: Alone) -> Sequence[FileFacts]:
        """Store an upload by `alone`, counted as under way."""
        self._alone += 1
        try:
            return await alone()
        finally:
            self._alone -= 1
            self._begin()

    def _may_begin(self) -> bool:
        if not self._together:
            return self._alone < REQUESTS_AT_ONCE
        if len(self._together) >= BUNDLES_AT_ONCE:
            return False
        at_node = self._alone + self._storing
        return at_node < REQUESTS_AT_ONCE and len(self._waiting) >= (ENOUGH if at_node else SOME)

    def _begin(self) -> None:
        while self._waiting and self._may_begin():
            batch = self._next()
            if len(batch) == 1:
                batch[0].future.set_result(None)
                return  # it begins in a moment, and then counts
            if batch:
                # Without this request's context: the work is for several requests.
                task = asyncio.create_task(self._store_together(batch), context=detached())
                self._together.add(task)
                task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._together.discard(task)
        self._begin()

    def _next(self) -> list[_Waiting]:
        """Return the next uploads that go together."""
        batch: list[_Waiting] = []
        files = size = 0
        while self._waiting:
            first = self._waiting[0]
            if first.future.done():  # its request is gone
                self._waiting.popleft()
                continue
            files += len(first.upload.files)
            size += first.upload.size
            if batch and (files > MOST_LINKS or size > MOST_BUNDLE_BYTES):
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _store_together(self, batch: Sequence[_Waiting]) -> None:
        try:
            outcomes = await self._bundled([waiting.upload for waiting in batch])
        except Conflict:
            outcomes = {}  # each by itself
        except asyncio.CancelledError:  # the process ends
            for waiting in batch:
                waiting.future.cancel()
            raise
        except Exception as error:
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        for waiting in batch:
            if waiting.future.done():
                continue
            outcome = outcomes.get(waiting.upload)
            if isinstance(outcome, Unauthorized):
                waiting.future.set_exception(outcome)
            else:
                waiting.future.set_result(outcome)

    async def _bundled(
        self, uploads: Sequence[SmallUpload]
    ) -> dict[SmallUpload, Sequence[FileFacts] | Unauthorized | None]:
        async with self._lease.lent() as lease:
            admitted, bundle = await self._stored(lease, uploads)
            if not admitted.uploads:
                return {}
            recorded = await to_thread.run_sync(self._records.record, lease, admitted, bundle)
            if recorded.collecting:
                lease.close()
        if bundle is not None:
            self._metrics.bundles.inc()
            self._metrics.bundled_files.inc(len(bundle.blocks))
        outcomes = dict(zip(admitted.uploads, recorded.files, strict=True))
        stored = sum(
            upload.size for upload, files in outcomes.items() if isinstance(files, Sequence)
        )
        self._metrics.uploaded_bytes.inc(stored)
        return outcomes

    async def _stored(
        self, lease: HeldLease, uploads: Sequence[SmallUpload]
    ) -> tuple[Admitted, Bundle | None]:
        """Have the node store the blocks that it doesn't have."""
        self._storing += 1
        try:
            admitted = await to_thread.run_sync(self._records.admit, uploads)
            if not admitted.fresh:
                return admitted, None
            bundle = make_bundle(list(admitted.fresh.values()), new_id().bytes)
            await self._node.store_bundle(bundle, pin_name=lease.pin_name)
            return admitted, bundle
        finally:
            self._storing -= 1
            self._begin()  # while this one is recorded
