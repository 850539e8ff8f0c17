"""Identity of a node that on-api does not run: recorded when it is first used, compared from then
on (ADR 0024).

Another node at the same address is refused until an operator accepts it: `on-api node adopt`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from on_api.core.errors import (
    BadRequest,
    DatabaseUnavailable,
    NodeUnavailable,
    OnApiError,
    WrongNode,
)
from on_api.core.ipfs.kubo.control import KuboNode
from on_api.core.models import Database, Deployment
from on_api.core.models.content import NODE_ID_LENGTH
from on_api.core.services.accounts import audit
from on_api.core.services.accounts.audit import Actor
from on_api.core.services.content.pin_names import deployment
from on_api.core.services.upkeep.node import connect_node
from on_api.core.settings import Settings

BELIEVED_SECONDS = 5.0
"""Seconds for which the database's answer is trusted: another process may adopt another node."""


class RecordedNode:
    """The node that the database names, as an `ExpectedNode`.

    If it names none, an instance that `records` (a server, a worker) records the node that answers;
    others (a command: with the wrong home or address) refuse it.
    """

    def __init__(self, database: Database, *, records: bool) -> None:
        self._database = database
        self._records = records
        self._expected: str | None = None
        self._answered_at = float("-inf")
        """Time of the database's last answer, by `time.monotonic`."""

    async def may_get_secret(self) -> bool:
        """Return False: secrets are sent only after the node's answer, as any program may listen at
        the address."""
        return False

    async def check(self, peer_id: str) -> None:
        """See `ExpectedNode.check`. Asks the database unless it has named this node just now."""
        began = time.monotonic()
        if peer_id == self._expected and began - self._answered_at < BELIEVED_SECONDS:
            return
        try:
            expected = await to_thread.run_sync(self._look, peer_id)
        except DatabaseUnavailable as error:
            raise NodeUnavailable(
                "Without the database, on-api can't check that the IPFS node belongs to this"
                " deployment."
            ) from error
        except BadRequest as error:
            raise WrongNode(error.details) from error
        if expected is None:
            raise WrongNode(
                f"This database has never been used with an IPFS node, and {peer_id} is the"
                " node at the configured address: start `on-api serve` to use it, or accept it"
                " with `on-api node adopt`."
            )
        if expected != peer_id:
            raise WrongNode(
                f"The IPFS node {peer_id} responds instead of {expected}, which belongs to"
                " this database: on-api did not use it. Correct ON_API_IPFS__RPC_URL, or"
                " accept the other node with `on-api node adopt`."
            )
        self._expected, self._answered_at = peer_id, began

    def _look(self, peer_id: str) -> str | None:
        with self._database.session_scope(write=False) as session:
            expected = session.scalar(select(Deployment.node_id))
        if expected is not None or not self._records:
            return expected
        with self._database.session_scope() as session:
            row = deployment(session, lock=True)
            if row.node_id is None:
                row.node_id = checked_id(peer_id)
            return row.node_id


def adopt(session: Session, peer_id: str, actor: Actor) -> str | None:
    """Make this node the deployment's. Returns the previous one's id, or None."""
    row = deployment(session, lock=True)
    before, row.node_id = row.node_id, checked_id(peer_id)
    audit.record(session, actor, "node.adopt", "node", node_id=peer_id, before=before)
    session.flush()
    return before


@asynccontextmanager
async def asking(settings: Settings) -> AsyncIterator[KuboNode]:
    """Provide the node of the settings, for questions about itself: any node at the address where
    the database can't be read, or names none."""
    with Database.opened(settings) as database:
        known = await to_thread.run_sync(_known, database)
        recorded = RecordedNode(database, records=False) if known is not None else None
        async with connect_node(settings, recorded) as node:
            yield node


def _known(database: Database) -> str | None:
    try:
        with database.session_scope(write=False) as session:
            return session.scalar(select(Deployment.node_id))
    except (OnApiError, SQLAlchemyError):
        return None  # `doctor` reports what is wrong with it


def checked_id(peer_id: str) -> str:
    """Return a node's identity as it was given. Raises `BadRequest` for a malformed one."""
    if not peer_id.isalnum() or len(peer_id) > NODE_ID_LENGTH:
        raise BadRequest("The IPFS node's peer ID is not a valid libp2p identity.")
    return peer_id
