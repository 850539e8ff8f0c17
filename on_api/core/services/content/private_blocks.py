"""Blocks on the node that belong to private files.

Only the gateway's policy `local` needs them, which serves everything else that the node holds.
Unknown blocks are looked up before each verdict: so nothing is written when a file is stored, and
files stored a moment ago, or by an earlier version, are found as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import ParamSpec, Protocol, TypeVar

from sqlalchemy import delete, exists, not_, or_, select
from sqlalchemy.orm import Session

from on_api.core.ipfs.formats.cid import RAW, SHA2_256, Cid
from on_api.core.ipfs.formats.dag import DAG_CBOR, DagError, links_of
from on_api.core.ipfs.port import IpfsNode
from on_api.core.models import Content, Database, File, Pin, PrivateBlock
from on_api.core.models.content import ABSENT
from on_api.core.models.database import dialect_of, insert_into, table_of
from on_api.core.models.file import BLOCKS_UNKNOWN, PUBLIC
from on_api.core.models.pin import PINNED_STATUS
from on_api.core.services.content.walking import DamagedError, read_block

logger = logging.getLogger(__name__)

FILES_AT_ONCE = 100
"""Files looked up in one round."""
ROWS_AT_ONCE = 500
"""Rows in one statement."""


P = ParamSpec("P")
T = TypeVar("T")


class Threads(Protocol):
    """Threads for work that any client can cause."""

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in one of the threads. Raises what it raises."""
        ...


class PrivateBlocks:
    """Index of the blocks of private files. On one event loop."""

    def __init__(self, database: Database, node: IpfsNode, threads: Threads) -> None:
        self._database = database
        self._node = node
        self._threads = threads
        self._looking = asyncio.Lock()

    async def find_all(self) -> None:
        """Record the blocks of every private file in the database. Reads the inner blocks of new
        files, a thousandth of their bytes at most. Raises a `NodeError`."""
        while await self._threads.in_thread(self._unknown):
            async with self._looking:  # after waiting there may be nothing left
                for cid in await self._threads.in_thread(self._unknown):
                    digests = await self._digests_below(Cid.from_text(cid))
                    await self._threads.in_thread(self._remember, cid, digests)

    def _unknown(self) -> Sequence[str]:
        with self._database.session_scope(write=False) as session:
            return session.scalars(
                select(File.cid).where(BLOCKS_UNKNOWN).distinct().limit(FILES_AT_ONCE)
            ).all()

    async def _digests_below(self, root: Cid) -> Sequence[bytes]:
        """Return the digests of the root and of every block below it. Leaves are not read."""
        found = {root.digest: root}
        inner = [root]
        while inner:
            cid = inner.pop()
            try:
                below = links_of(cid.codec, await _block(self._node, cid))
            except (DagError, DamagedError) as error:
                logger.warning(
                    "the blocks of private content %s could not be listed for the gateway: %s",
                    root,
                    error,
                )
                continue
            new = {link.digest: link for link in below if link.digest not in found}
            found |= new
            inner += new.values()
        return list(found)

    def _remember(self, cid: str, digests: Sequence[bytes]) -> None:
        with self._database.session_scope() as session:
            insert = insert_into(dialect_of(session), table_of(PrivateBlock))
            for start in range(0, len(digests), ROWS_AT_ONCE):
                rows = [
                    {"digest": one, "root_cid": cid}
                    for one in digests[start : start + ROWS_AT_ONCE]
                ]
                session.execute(insert.values(rows).on_conflict_do_nothing())
            for file in session.scalars(select(File).where(File.cid == cid)):
                file.blocks_known = True


async def _block(node: IpfsNode, cid: Cid) -> bytes:
    """Read a block that may have links; empty for a leaf."""
    return b"" if cid.codec == RAW else await read_block(node, cid)


def is_private(session: Session, root: Cid) -> bool:
    """Return whether a block, under whatever codec, is known to belong to a private file, or is a
    bundle, which leads to many of them."""
    if root.hash_code != SHA2_256:
        return False
    # A recipient may have published the age file as it is, with all of its blocks.
    published = or_(
        exists().where(File.cid == PrivateBlock.root_cid, File.visibility == PUBLIC),
        exists().where(Pin.cid == PrivateBlock.root_cid, Pin.status == PINNED_STATUS),
    )
    is_block = exists().where(PrivateBlock.digest == root.digest, not_(published))
    bundle = str(Cid(DAG_CBOR, SHA2_256, root.digest))
    is_bundle = exists().where(Content.pin_root_id == bundle, Content.cid != bundle)
    return bool(session.scalar(select(or_(is_block, is_bundle))))


def forget_collected(session: Session) -> None:
    """Forget the blocks of contents that were absent before garbage was collected."""
    absent = select(Content.cid).where(Content.state == ABSENT)
    session.execute(delete(PrivateBlock).where(PrivateBlock.root_cid.in_(absent)))
