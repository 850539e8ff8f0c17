"""Whether what on-api needs is there: the database, its structure, the node."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from anyio import to_thread

from on_api.core.crypto.secrets import Keyring
from on_api.core.errors import NodeError, OnApiError
from on_api.core.ipfs.client import IpfsNode
from on_api.core.models import Database
from on_api.core.models.invalidation import Invalidations
from on_api.core.models.revisions import check_revision

EMPTY_FILE = "bafkqaaa"
"""An identity CID, which is its own content: every gateway has it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    details: str


async def check_readiness(
    database: Database, node: IpfsNode, keyring: Keyring, invalidations: Invalidations
) -> Sequence[Check]:
    """Look at everything at once. Takes no longer than the time-outs of database and node."""
    of_database, of_node = await asyncio.gather(
        to_thread.run_sync(_check_database, database), _check_node(node)
    )
    # Looked at when the process started: it takes a look at every row.
    problem = keyring.warning
    if problem is None and keyring.lacks_the_one_in_use:
        problem = "the master secret that is in use now is not here"
    secret = Check("secret", ok=problem is None, details=problem or "here")
    checks = [*of_database, of_node, secret]
    if not invalidations.trusted:
        silence = "changes that other processes make are not heard: nothing cached is used"
        checks.append(Check("news", ok=False, details=silence))
    return checks


def _check_database(database: Database) -> Sequence[Check]:
    try:
        with database.session_scope(write=False) as session:
            reached = Check("database", ok=True, details="reachable")
            try:
                check_revision(session.connection())
            except OnApiError as error:
                return [reached, Check("migrations", ok=False, details=error.details)]
            return [reached, Check("migrations", ok=True, details="at head")]
    except OnApiError as error:
        unknown = Check("migrations", ok=False, details="not known without the database")
        return [Check("database", ok=False, details=error.details), unknown]


async def _check_node(node: IpfsNode) -> Check:
    try:
        version = await node.version()
    except NodeError as error:
        return Check("node", ok=False, details=error.details)
    problem = await gateway_problem(node)
    if problem is not None:
        return Check("node", ok=False, details=problem)
    return Check("node", ok=True, details=f"{version.agent} {version.version}")


async def gateway_problem(node: IpfsNode) -> str | None:
    """What keeps the node's gateway, by which every download comes, from giving out what it is
    asked for; None when it does."""
    try:
        found = await node.block(EMPTY_FILE)
    except NodeError as error:
        return f"Its gateway: {error.details}"
    return None if found == b"" else "What answers at its gateway's address is no gateway."
