"""Database and node compared: every content has its pin, every pin of ours its reason, and every
DAG is whole.

A difference is checked again on its own before it becomes a finding: both sides change meanwhile,
and the node's list may be incomplete.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import timedelta

from anyio import to_thread
from sqlalchemy import exists, select

from on_api.core.errors import BlocksMissing, NodeError, ServiceUnavailable
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.ipfs.formats.dag import DAG_CBOR, DagError, links_of
from on_api.core.ipfs.port import IpfsNode, NodePin
from on_api.core.models import Content, Database, Holding, Lease, LeasedPin, Pin
from on_api.core.models.content import PINNED, UNPINNING
from on_api.core.models.database import database_now, new_id
from on_api.core.services.content import bundles, contents, leftovers
from on_api.core.services.content.leftovers import Leftover
from on_api.core.services.content.pin_names import PinNames
from on_api.core.services.content.pin_reconciler import PinReconciler
from on_api.core.services.content.walking import DamagedError, read_block, read_dag
from on_api.core.services.pins.jobs import UNDER_WAY
from on_api.core.services.upkeep.fsck.findings import Finding, FindingKind, FsckReport
from on_api.core.services.upkeep.fsck.ledger import SLACK
from on_api.core.services.upkeep.fsck.node_pins import NodePins
from on_api.core.services.upkeep.fsck.quarantine import Quarantine

logger = logging.getLogger(__name__)

EMPTY_FOLDERS = {
    "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354",
    "QmUNLLsPACCz1vLxQVkXqX5L1X345qqfHbsf67hvA3Nn",
}
"""CIDs that `ipfs init` pins in each new repo, without a name; pins of ours have one."""
PAGE_ROWS = 500
WALKS_AT_ONCE = 4
FETCH_SECONDS = 60.0
"""Seconds for which a repair asks the network for missing blocks."""
REMOVAL_LIFE = timedelta(minutes=1)


class NodeChecks:
    """Checks of one run."""

    def __init__(
        self,
        database: Database,
        node: IpfsNode,
        reconciler: PinReconciler,
        names: PinNames,
        report: FsckReport,
        *,
        repair: bool,
        fetch: bool,
    ) -> None:
        self._database = database
        self._node = node
        self._reconciler = reconciler
        self._names = names
        self._report = report
        self._repair = repair
        self._fetches = fetch
        self._mending = asyncio.Lock()
        self._seen_bundles: set[str] = set()
        """Bundles without a pin."""
        self._run = new_id()
        """Id of the job after which pins made in a repair are named."""

    async def check_states(self) -> None:
        """Check that contents with holdings are pinned, and that no removal was left unfinished."""
        for cid in await to_thread.run_sync(self._held_but_not_pinned):
            details = "the content is in use, but its row says that it is not pinned"
            mended = self._repair and await self._restore(cid)
            self._report.add(Finding(FindingKind.WRONG_STATE, cid, details, mended))
        for cid in await to_thread.run_sync(self._left_removals):
            mended = self._repair and await self._remove(cid)
            self._report.add(
                Finding(FindingKind.DEAD_LEASE, cid, "its removal was interrupted", mended)
            )

    async def check_contents(self, pins: NodePins, *, walk: bool) -> None:
        """Check that every content that the database says is pinned is; with `walk` also that its
        DAG is whole."""
        slots = asyncio.Semaphore(WALKS_AT_ONCE)

        async def check(cid: str, root: str, *, listed: bool) -> None:
            async with slots:
                if (listed or await self._is_covered(cid, root)) and walk:
                    await self._walk(cid)

        async for page in self.pinned_contents():
            self._report.contents += len(page)
            missing = set(pins.missing(list({root for _, root in page})))
            await asyncio.gather(
                *(check(cid, root, listed=root not in missing) for cid, root in page)
            )

    async def check_pins(self, pins: NodePins, quarantine: Quarantine, *, now: bool) -> None:
        """Check that every pin on the node belongs to a content, to running work, or not to on-api.
        With `now` a repair ends pins that are in quarantine."""
        self._report.pins = pins.count
        for page in pins.pages():
            for pin in await to_thread.run_sync(self._unknown, page):
                await self._look_at_unknown(pin, quarantine, now=now)
        await to_thread.run_sync(quarantine.forget_unseen)

    async def _is_covered(self, cid: str, root: str) -> bool:
        """Return whether a content is covered whose pin, or whose bundle's, is missing from the
        list."""
        if root == cid:
            return await self._is_pinned(cid)
        async with self._mending:  # one finding for all of its members
            if root not in self._seen_bundles:
                self._seen_bundles.add(root)
                await self._is_pinned(root)
        # The bundle may have been dissolved because of a missing block: each member then has its
        # own pin.
        now = await to_thread.run_sync(self._root, cid)
        return await self._is_pinned(cid) if now == cid else now is not None

    async def _is_pinned(self, cid: str) -> bool:
        """Return whether a content has a pin that is missing from the list; if not, report it and
        try to repair it."""
        if await self._node.pin_status(cid) is not None:
            return True
        if await to_thread.run_sync(self._state, cid) != PINNED:
            return False  # unpinned meanwhile
        mended = False
        if self._repair:
            try:
                mended = await self._reconciler.heal(cid, self._run)
            except NodeError:
                mended = await self._fetch_and_pin(cid)
        details = "the node has no pin for it"
        self._report.add(Finding(FindingKind.MISSING_PIN, cid, details, mended))
        return mended

    async def _walk(self, cid: str) -> None:
        if Cid.from_text(cid).codec == DAG_CBOR and (
            members := await to_thread.run_sync(self._members, cid)
        ):
            await self._walk_bundle(cid, members)
            return
        damage = await self._damage(cid)
        if damage is None or await to_thread.run_sync(self._state, cid) != PINNED:
            return
        mended = False
        if self._repair:
            await self._fetch(cid)
            mended = await self._damage(cid) is None
        self._report.add(Finding(FindingKind.DAMAGED_DAG, cid, damage, mended))

    async def _walk_bundle(self, cid: str, members: Collection[str]) -> None:
        """Walk a bundle's own block and its dead members, without which it could not be pinned
        again. Its living members are walked separately."""
        try:
            node = await read_block(self._node, Cid.from_text(cid))
            dead = [link for link in links_of(DAG_CBOR, node) if str(link) not in members]
            sizes = [len(await read_block(self._node, link)) for link in dead]
        except (DamagedError, DagError) as error:
            mended = False
            if self._repair:
                await self._reconciler.dissolve(cid, self._run, lost=False)
                mended = await to_thread.run_sync(self._state, cid) != PINNED
            self._report.add(Finding(FindingKind.DAMAGED_DAG, cid, str(error), mended))
            return
        self._report.blocks += 1 + len(dead)
        self._report.bytes += len(node) + sum(sizes)

    async def _damage(self, cid: str) -> str | None:
        """Read the whole DAG. Returns what is wrong with it, None when all is well."""
        try:
            stat = await read_dag(self._node, cid)
        except DamagedError as error:
            return str(error)
        self._report.blocks += stat.blocks
        self._report.bytes += stat.size
        return None

    async def _fetch(self, cid: str) -> None:
        """Fetch missing blocks from the network, if allowed, without touching the pin."""
        if not self._fetches:
            return
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                if await self._node.peer_count():
                    await self._node.dag_stat(cid, fetch=True)
        except (TimeoutError, NodeError):
            logger.info("could not fetch the missing blocks of %s from the network", cid)

    async def _fetch_and_pin(self, cid: str) -> bool:
        await self._fetch(cid)
        try:
            return await self._reconciler.heal(cid, self._run)
        except NodeError:
            return False

    async def _restore(self, cid: str) -> bool:
        """Pin again a content that has holdings though its row says that it is not pinned. Returns
        whether that succeeded."""
        try:
            generation = await self._reconciler.secure(cid, self._run)
        except (NodeError, ServiceUnavailable):
            return False

        def set_pinned() -> bool:
            with self._database.session_scope() as session:
                content = contents.lock(session, cid)
                if content is None or content.generation != generation:
                    return False
                content.state, content.unreferenced_at = PINNED, None
                return True

        return await to_thread.run_sync(set_pinned)

    async def _look_at_unknown(self, pin: NodePin, quarantine: Quarantine, *, now: bool) -> None:
        if pin.cid in EMPTY_FOLDERS and not pin.name:
            return
        job = await to_thread.run_sync(self._names.job_of, pin.name)
        if job is None:
            details = f"named {pin.name!r}" if pin.name else "it has no name"
            self._report.add(Finding(FindingKind.FOREIGN_PIN, pin.cid, details))
            return
        if await to_thread.run_sync(self._is_in_flight, job, pin.cid):
            return
        if await to_thread.run_sync(self._state, pin.cid) in {PINNED, UNPINNING}:
            return
        if await self._node.pin_status(pin.cid) is None:
            return
        if await to_thread.run_sync(quarantine.is_known, job, pin.cid):
            mended = self._repair and await self._remove(pin.cid)
            if mended:
                await to_thread.run_sync(self._unlist, job, pin.cid)
            details = f"left over from job {job}, which has ended"
            self._report.add(Finding(FindingKind.ORPHAN_PIN, pin.cid, details, mended))
            return
        sight = await to_thread.run_sync(quarantine.see, pin.cid, job)
        details = f"the database does not know job {job}, which created it"
        if self._repair and (sight.over or now):
            mended = await self._remove(pin.cid)
            if mended:
                await to_thread.run_sync(quarantine.release, pin.cid)
            self._report.add(Finding(FindingKind.ORPHAN_PIN, pin.cid, details, mended))
            return
        when = sight.ends_at.isoformat(timespec="seconds").replace("+00:00", "Z")
        details += f"; if it is found again, --repair removes it from {when} on"
        self._report.add(
            Finding(
                FindingKind.ORPHAN_PIN,
                pin.cid,
                details,
                due_at=sight.ends_at,
                deferred=self._repair,
            )
        )

    async def is_lost(self, cid: str) -> bool:
        """Return whether a content is not whole, or not pinned and can't be. Raises a `NodeError`:
        a node that doesn't answer has lost nothing."""
        try:
            await self._reconciler.heal(cid, self._run)
        except BlocksMissing:
            return True
        return await self._damage(cid) is not None

    async def forget(self, cid: str) -> bool:
        """End a content that is no longer referenced, without its time of grace. Returns whether
        that is done."""
        return await self._remove(cid)

    async def _remove(self, cid: str) -> bool:
        """Unpin through the content's own states, so that a user who stores it now does not lose
        it."""

        def begin() -> contents.Removal | None:
            with self._database.session_scope() as session:
                return contents.begin_removal(session, cid, grace=timedelta(0), life=REMOVAL_LIFE)

        removal = await to_thread.run_sync(begin)
        if removal is None:
            return False
        try:
            return await self._reconciler.remove(removal)
        except NodeError:
            return False

    async def pinned_contents(self) -> AsyncIterator[Sequence[tuple[str, str]]]:
        """Yield pages of CIDs, each with the root whose pin covers it."""
        last = ""

        def page() -> Sequence[tuple[str, str]]:
            with self._database.session_scope(write=False) as session:
                found = session.execute(
                    select(Content.cid, Content.pin_root_id)
                    .where(Content.state == PINNED, Content.cid > last)
                    .order_by(Content.cid)
                    .limit(PAGE_ROWS)
                )
                return [(cid, root) for cid, root in found]

        while found := await to_thread.run_sync(page):
            yield found
            last = found[-1][0]

    def _held_but_not_pinned(self) -> Sequence[str]:
        held = exists().where(Holding.cid == Content.cid)
        with self._database.session_scope(write=False) as session:
            return session.scalars(select(Content.cid).where(Content.state != PINNED, held)).all()

    def _left_removals(self) -> Sequence[str]:
        left = (Content.state == UNPINNING) & (Content.lease_until < database_now(-REMOVAL_LIFE))
        with self._database.session_scope(write=False) as session:
            return session.scalars(select(Content.cid).where(left)).all()

    def _unknown(self, pins: Sequence[NodePin]) -> list[NodePin]:
        """Return those pins that belong to no content."""
        cids = [pin.cid for pin in pins]
        with self._database.session_scope(write=False) as session:
            known = set(
                session.scalars(
                    select(Content.cid).where(
                        Content.cid.in_(cids), Content.state.in_((PINNED, UNPINNING))
                    )
                )
            )
        return [pin for pin in pins if pin.cid not in known]

    def _is_in_flight(self, job: uuid.UUID, cid: str) -> bool:
        """Return whether the work that made a pin on `cid` is still running, or other work that may
        take the pin over: pins that are made together are all named after the first."""
        listed = exists().where(
            LeasedPin.cid == cid,
            LeasedPin.lease_id == Lease.id,
            Lease.lease_until > database_now(-SLACK),
        )
        with self._database.session_scope(write=False) as session:
            # Recent failures are the worker's to remove; a repair removes them at once.
            if not self._repair and session.scalar(select(listed)):
                return True
            upload = exists().where(Lease.id == job, Lease.lease_until > database_now())
            pin = exists().where(Pin.id == job, Pin.status.in_(UNDER_WAY))
            kin = exists().where(Pin.cid == cid, Pin.status.in_(UNDER_WAY))
            return bool(session.scalar(select(upload | pin | kin)))

    def _unlist(self, job: uuid.UUID, cid: str) -> None:
        with self._database.session_scope() as session:
            leftovers.unlist(session, Leftover(job, cid, settled=True))

    def _members(self, bundle: str) -> Collection[str]:
        with self._database.session_scope(write=False) as session:
            return bundles.members(session, bundle)

    def _root(self, cid: str) -> str | None:
        with self._database.session_scope(write=False) as session:
            return contents.root_of(session, cid)

    def _state(self, cid: str) -> str | None:
        with self._database.session_scope(write=False) as session:
            content = session.get(Content, cid)
            return None if content is None else content.state
