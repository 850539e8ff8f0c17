"""Agreement between the node's pins and the rows of contents. The node is called here, and never
during a transaction.

What locks can't order is repaired: work that finds that it came too late checks whether the content
is referenced now, and pins it again.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from datetime import timedelta

from anyio import to_thread
from sqlalchemy.orm import Session

from on_api.core.errors import BlocksMissing, ServiceUnavailable
from on_api.core.ipfs.port import IpfsNode
from on_api.core.models import Content, Database
from on_api.core.models.content import ABSENT, UNPINNING
from on_api.core.models.database import moment_of
from on_api.core.services.content import bundles, contents
from on_api.core.services.content.contents import NEVER, Removal
from on_api.core.services.content.leases import LeaseHandle
from on_api.core.services.content.pin_names import PinNames

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.05
MARGIN_SECONDS = 5.0


class PinReconciler:
    """Pins and unpins on the node as the rows of contents say. `life` is that of a removal's
    claim, in seconds."""

    def __init__(self, database: Database, node: IpfsNode, names: PinNames, life: float) -> None:
        self._database = database
        self._node = node
        self._names = names
        self._life = timedelta(seconds=life)

    async def secure(self, cid: str, job: uuid.UUID) -> int:
        """Make sure, for a job, that the node has pinned `cid`, waiting for a removal to end first.

        All its blocks must be there. Returns the generation under which this holds: a later removal
        has another one. Raises `ServiceUnavailable` when a removal does not end, or a `NodeError`.
        """
        deadline = asyncio.get_running_loop().time() + self._life.total_seconds() + MARGIN_SECONDS
        while True:
            state, generation = await to_thread.run_sync(self._look, cid)
            if state != UNPINNING:
                break
            if asyncio.get_running_loop().time() > deadline:
                raise ServiceUnavailable(
                    "This content is just being removed; send the request again."
                )
            await asyncio.sleep(LOOK_SECONDS)
        await self._pin_again(cid, job)
        return generation

    async def secure_under(self, lease: LeaseHandle, cid: str, size: int = 0) -> int:
        """Secure `cid` for work under a lease. It is listed first: the node may pin it though its
        answer is lost. Returns and raises as `secure` does."""
        lease.pinned.setdefault(cid, size)
        return await self.secure(cid, lease.id)

    async def remove(self, removal: Removal) -> bool:
        """Unpin a content under a claim. Returns whether it is gone."""
        if time.monotonic() >= removal.ends_at:  # the claim has expired: it may be in use
            return False
        await self._node.unpin(removal.cid)
        if await to_thread.run_sync(self._finish, removal):
            return True
        logger.warning(
            "content %s was unpinned too late; restoring its pin if it is still needed", removal.cid
        )
        await self.heal(removal.cid, removal.token)
        return False

    async def heal(self, cid: str, job: uuid.UUID) -> bool:
        """Pin `cid`, or the bundle that covers it, again for a job, if the content is kept and the
        node has lost the pin. Returns whether it had.

        A bundle that can't be pinned because a block is missing is dissolved. Raises a `NodeError`.
        """
        root = await to_thread.run_sync(self._root, cid)
        if root is None:
            return False
        try:
            return await self._pin_again(root, job)
        except BlocksMissing:
            await self.dissolve(root, job, lost=True)
            root = await to_thread.run_sync(self._root, cid)
            if root is not None:  # it was no bundle, or another one covers it
                await self._pin_again(root, job)
            return True

    async def dissolve(self, bundle: str, job: uuid.UUID, *, lost: bool) -> None:
        """Give all living members of a bundle pins of their own, for a job, and remove the bundle.

        Members whose blocks are missing stay in the bundle, which then stays too, unless the node
        has `lost` its pin. Raises a `NodeError`. Does nothing to a content that is no bundle.
        """
        members = await to_thread.run_sync(self._begin_dissolving, bundle)
        for cid, generation in members.items():
            try:
                await self._pin_again(cid, job)
            except BlocksMissing:
                if not lost:
                    continue
            orphan = await to_thread.run_sync(self._leave, cid, bundle, generation)
            if orphan is not None:
                await self.remove(orphan)
        if members:
            rest = await to_thread.run_sync(self._begin_ending, bundle)
            if rest is not None:
                await self.remove(rest)

    async def _pin_again(self, cid: str, job: uuid.UUID) -> bool:
        # Never `pin` on what is pinned: see `IpfsNode.pin`.
        if await self._node.pin_status(cid) is not None:
            return False
        name = await to_thread.run_sync(self._names.of, job)
        await self._node.pin(cid, name=name, fetch=False)
        return True

    def _look(self, cid: str) -> tuple[str, int]:
        """Return state and generation. Ends a removal whose claim has expired."""
        with self._database.session_scope(write=False) as session:
            content = session.get(Content, cid)
            if content is None:
                return ABSENT, 0
            if content.state != UNPINNING or not _is_left(session, content):
                return content.state, content.generation
        with self._database.session_scope() as session:
            content = contents.lock(session, cid)
            if content is not None and content.state == UNPINNING and _is_left(session, content):
                contents.make_absent(content)
            return (ABSENT, 0) if content is None else (content.state, content.generation)

    def _root(self, cid: str) -> str | None:
        with self._database.session_scope(write=False) as session:
            return contents.root_of(session, cid)

    def _begin_dissolving(self, bundle: str) -> dict[str, int]:
        """Return the bundle's living members (generation by CID) and mark them: each may have a pin
        of its own from now on."""
        with self._database.session_scope() as session:
            members = bundles.members(session, bundle)
            for content in contents.lock_all(session, members).values():
                content.pinned_too = content.pin_root_id != content.cid
            return members

    def _leave(self, cid: str, bundle: str, generation: int) -> Removal | None:
        """Record that a member has its own pin. Returns the right to unpin it if it has died
        meanwhile."""
        with self._database.session_scope() as session:
            locked = contents.lock_all(session, (cid, bundle))
            content = locked[cid]
            if content.pin_root_id == bundle and content.generation == generation:
                bundles.leave(session, content, locked[bundle], moment_of(session))
            elif content.state == ABSENT:
                return contents.begin_removal(session, cid, grace=NEVER, life=self._life)
            return None

    def _begin_ending(self, bundle: str) -> Removal | None:
        """Claim the unpinning of a bundle that is no longer held. There is no grace: it was held
        for its members only."""
        with self._database.session_scope() as session:
            return contents.begin_removal(session, bundle, grace=timedelta(0), life=self._life)

    def _finish(self, removal: Removal) -> bool:
        with self._database.session_scope() as session:
            return contents.finish_removal(session, removal)


def _is_left(session: Session, content: Content) -> bool:
    return content.lease_until is None or content.lease_until < moment_of(session)
