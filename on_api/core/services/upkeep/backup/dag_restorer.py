"""Bringing a backup's blocks to a node, and pinning what a restored database says is pinned."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from anyio import to_thread
from sqlalchemy import ColumnElement, exists, func, select, update
from sqlalchemy.orm import Session, aliased

from on_api.core.errors import BlocksMissing, NodeError
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.ipfs.port import IpfsNode
from on_api.core.models import Content, Database, Holding
from on_api.core.models.content import ABSENT, PINNED
from on_api.core.services.content.pin_names import PinNames
from on_api.core.services.content.walking import DamagedError
from on_api.core.services.upkeep.backup.dag_walk import Found, walk
from on_api.core.services.upkeep.backup.damages import MOST_TROUBLES, Damage, add_damage
from on_api.core.services.upkeep.backup.folder import BackupFolder
from on_api.core.services.upkeep.backup.runner import Tell
from on_api.core.services.upkeep.backup.saved_rows import SavedRows

logger = logging.getLogger(__name__)

PAGE = 64
"""DAGs brought to the node in one call, and pinned in another one."""
TOGETHER_BYTES = 64 * 1024 * 1024
"""Bytes up to which they are pinned in one call, which the node answers only at its end."""
PIECE = 16
"""Blocks read in one visit to a thread."""

_member = aliased(Content)


@dataclass
class RestoredDags:
    """Result: what was brought and pinned. `lost` are contents that the backup has not whole."""

    contents: int = 0
    blocks: int = 0
    bytes: int = 0
    pinned: int = 0
    lost: int = 0
    damages: list[Damage] = field(default_factory=list)


class DagRestorer:
    """Restorer of one run, which names its pins after a job."""

    def __init__(
        self,
        folder: BackupFolder,
        database: Database,
        rows: SavedRows,
        node: IpfsNode,
        job: uuid.UUID,
        tell: Tell,
    ) -> None:
        self._folder = folder
        self._database = database
        self._rows = rows
        self._node = node
        self._job = job
        self._tell = tell
        self._names = PinNames(database)
        self._total = 0
        self._troubles: dict[str, list[str]] = {}
        """Errors in the DAGs of one page, by their roots."""
        self.result = RestoredDags()

    async def run(self) -> RestoredDags:
        """Bring and pin everything; what the node has pinned already is left as it is.

        A bundle that is not whole is given up: its members get pins of their own. Raises a
        `NodeError`.
        """
        self._total = await to_thread.run_sync(self._count)
        covering = exists().where(_member.pin_root_id == Content.cid, _member.cid != Content.cid)
        # Bundles first: the members of one that is given up come with the others.
        for kind in (covering, ~covering):
            last = ""
            while page := await to_thread.run_sync(self._page, kind, last):
                await self._restore(page)
                last = page[-1]
        return self.result

    async def _restore(self, cids: Sequence[str]) -> None:
        missing = [cid for cid in cids if await self._node.pin_status(cid) is None]
        self.result.contents += len(cids)
        self._troubles = {cid: [] for cid in missing}
        before = self.result.bytes
        stat = await self._node.import_blocks(self._blocks(missing))
        self.result.blocks += stat.blocks
        whole = [cid for cid in missing if not self._troubles[cid]]
        await self._pin(whole, together=self.result.bytes - before <= TOGETHER_BYTES)
        for cid, troubles in self._troubles.items():
            if troubles:
                await to_thread.run_sync(self._give_up, cid, troubles)
        self._tell("restoring blocks", self.result.contents, self._total, self.result.bytes)

    async def _blocks(self, roots: Sequence[str]) -> AsyncIterator[tuple[Cid, bytes]]:
        for root in roots:
            found = walk(
                self._folder.blocks, self._folder.roots, Cid.from_text(root), reads_leaves=True
            )
            while piece := await to_thread.run_sync(_some, found):
                for cid, block in piece:
                    if isinstance(block, DamagedError):
                        if len(self._troubles[root]) < MOST_TROUBLES:
                            self._troubles[root].append(str(block))
                        continue
                    self.result.bytes += len(block)
                    yield cid, block
                self._tell("restoring blocks", self.result.contents, self._total, self.result.bytes)

    async def _pin(self, cids: Sequence[str], *, together: bool) -> None:
        name = await to_thread.run_sync(self._names.of, self._job)
        if together and len(cids) > 1:
            try:
                await self._node.pin_all(cids, name=name)
            except NodeError as error:
                logger.info("pinning one by one: %s", error.details)
            else:
                self.result.pinned += len(cids)
                return
        for cid in cids:
            if await self._node.pin_status(cid) is not None:  # by the call that failed
                self.result.pinned += 1
                continue
            try:
                await self._node.pin(cid, name=name, fetch=False)
                self.result.pinned += 1
            except BlocksMissing:
                self._troubles[cid].append("the node says that blocks are missing")

    def _give_up(self, cid: str, troubles: Sequence[str]) -> None:
        with self._database.session_scope() as session:
            is_held = session.scalar(select(exists().where(Holding.cid == cid)))
            _dissolve(session, cid, is_held=bool(is_held))
        if is_held:
            self.result.lost += 1
            add_damage(self.result.damages, cid, troubles, self._rows)

    def _page(self, kind: ColumnElement[bool], last: str) -> Sequence[str]:
        with self._database.session_scope(write=False) as session:
            asked = select(Content.cid).where(_is_root(), kind, Content.cid > last)
            return session.scalars(asked.order_by(Content.cid).limit(PAGE)).all()

    def _count(self) -> int:
        with self._database.session_scope(write=False) as session:
            return session.scalar(select(func.count(Content.cid)).where(_is_root())) or 0


def _is_root() -> ColumnElement[bool]:
    return (Content.state == PINNED) & (Content.pin_root_id == Content.cid)


def _some(found: Iterator[Found]) -> Sequence[Found]:
    return [each for _, each in zip(range(PIECE), found, strict=False)]


def _dissolve(session: Session, bundle: str, *, is_held: bool) -> None:
    """Give the members of a bundle that can't be pinned pins of their own, and end it unless
    somebody holds it. Does nothing to a content that covers no others."""
    members = (Content.pin_root_id == bundle) & (Content.cid != bundle)
    if session.scalar(select(exists().where(members))) and not is_held:
        ended = update(Content).where(Content.cid == bundle)
        session.execute(ended.values(state=ABSENT, unreferenced_at=None, thinned_at=None))
    unheld = ~exists().where(Holding.cid == Content.cid)
    gone = update(Content).where(members, unheld)
    session.execute(gone.values(state=ABSENT, pin_root_id=Content.cid, unreferenced_at=None))
    session.execute(update(Content).where(members).values(pin_root_id=Content.cid))
