"""Readiness: whether all that on-api needs is available, and what is wrong, within two seconds even
if something hangs.

Each part is a `Look` of its own; those that ask the database run in threads of their own.
`DEADLINE_SECONDS` after the start of a look its callers learn that there is no answer.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from anyio import CapacityLimiter, to_thread
from sqlalchemy import text, update
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from on_api.core.crypto.secrets import Keyring
from on_api.core.errors import NodeError, OnApiError
from on_api.core.ipfs.port import IpfsNode
from on_api.core.logging import log_failure
from on_api.core.models import Database, Deployment
from on_api.core.models.invalidation import Invalidations
from on_api.core.models.revisions import check_revision
from on_api.core.services.content.capacity import Capacity
from on_api.core.services.upkeep.looks import Look

logger = logging.getLogger(__name__)

DEADLINE_SECONDS = 1.5
"""Seconds after which a running check is reported as a failure."""
FRESH_SECONDS = 1.0
"""Seconds for which a result is reported again."""
LEAST_FREE_BYTES = 8 * 1024 * 1024
"""Bytes that SQLite's disk must have left: its log alone grows to 4 MiB before it is reused."""

_PROBE_DISK_SPACE = text(
    "CREATE TEMPORARY TABLE on_api_takes_room AS"
    " SELECT repeat('x', 1000) AS filler FROM generate_series(1, 1000)"
)
"""Make PostgreSQL write a megabyte to a file of its own, without its log."""

EMPTY_FILE = "bafkqaaa"
"""Identity CID, which contains its own content: every gateway has it."""


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check. `needed`: without it the service is not ready."""

    name: str
    ok: bool
    details: str
    needed: bool = True


class ReadinessChecks:
    """Checks of all parts, made at once. On one event loop."""

    def __init__(
        self,
        database: Database,
        node: IpfsNode,
        capacity: Capacity,
        invalidations: Invalidations,
        keyring: Keyring,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._node = node
        self._capacity = capacity
        self._invalidations = invalidations
        self._keyring = keyring
        self._threads = CapacityLimiter(2)
        self._parts = [
            _Part(("database", "migrations"), self._read, self._why_silent, clock),
            _Part(("writes",), self._write, self._why_silent, clock),
            _Part(("node",), self._ask_node, _silent, clock),
            _Part(("gateway",), self._ask_gateway, _silent, clock),
            _Part(("room",), self._check_capacity, _silent, clock, needed=False),
        ]

    async def checks(self) -> Sequence[Check]:
        """Return results not older than `FRESH_SECONDS`, or new ones, within `DEADLINE_SECONDS`."""
        seen = await asyncio.gather(*(part.result() for part in self._parts))
        return [*(check for checks in seen for check in checks), self._news(), self._secret()]

    async def close(self) -> None:
        """Cancel running checks."""
        for part in self._parts:
            await part.close()

    async def _read(self) -> Sequence[Check]:
        return await to_thread.run_sync(
            _check_database, self._database, limiter=self._threads, abandon_on_cancel=True
        )

    async def _write(self) -> Sequence[Check]:
        return await to_thread.run_sync(
            _check_writes, self._database, limiter=self._threads, abandon_on_cancel=True
        )

    async def _ask_node(self) -> Sequence[Check]:
        version = await self._node.version()
        return [Check("node", ok=True, details=f"{version.agent} {version.version}")]

    async def _ask_gateway(self) -> Sequence[Check]:
        problem = await gateway_problem(self._node)
        return [Check("gateway", ok=problem is None, details=problem or "serves")]

    async def _check_capacity(self) -> Sequence[Check]:
        # Not needed: stored content can be read, listed and deleted, and other instances at the
        # same node would have no more room.
        bytes_left = await self._capacity.bytes_left()
        if bytes_left is None:
            return [Check("room", ok=False, details="the node does not report it", needed=False)]
        if bytes_left > 0:
            return [Check("room", ok=True, details=f"{bytes_left} bytes are free", needed=False)]
        words = "the node is full: uploads are refused with 507"
        return [Check("room", ok=False, details=words, needed=False)]

    def _why_silent(self, seconds: float) -> str:
        if self._database.connections_in_use() >= self._database.most_connections:
            return f"all {self._database.most_connections} connections are in use"
        if waiting := self._database.writers_waiting():
            return f"{_silent(seconds)}; {waiting} transactions are waiting to write"
        return _silent(seconds)

    def _news(self) -> Check:
        # Not needed: without invalidations the caches are not used, which is slower but correct.
        if self._invalidations.trusted:
            return Check("news", ok=True, details="heard", needed=False)
        words = "changes made by other processes are not received, so caches are disabled for now"
        return Check("news", ok=False, details=words, needed=False)

    def _secret(self) -> Check:
        # Checked when the process started: it reads every row.
        warning = self._keyring.warning
        if warning is None and self._keyring.lacks_the_one_in_use:
            warning = "the master secret that is in use is not available to this process"
        return Check("secret", ok=warning is None, details=warning or "here")


class _Part:
    """Check of one part."""

    def __init__(
        self,
        names: Sequence[str],
        check: Callable[[], Awaitable[Sequence[Check]]],
        why_silent: Callable[[float], str],
        clock: Callable[[], float],
        *,
        needed: bool = True,
    ) -> None:
        self._names = names
        self._check = check
        self._why_silent = why_silent
        self._needed = needed
        self._look = Look(self._run, fresh=FRESH_SECONDS, deadline=DEADLINE_SECONDS, clock=clock)

    async def result(self) -> Sequence[Check]:
        checks = await self._look.answer()
        if checks is None:
            return self._all_failed(self._why_silent(self._look.seconds))
        return checks

    async def close(self) -> None:
        await self._look.close()

    async def _run(self) -> Sequence[Check]:
        try:
            return await self._check()
        except OnApiError as error:
            return self._all_failed(error.details)
        except Exception as error:  # a missing table, say: reported, and no 500
            log_failure(logger, f"the check of {self._names[0]} failed", error)
            return self._all_failed(f"the check failed: {type(error).__name__}")

    def _all_failed(self, details: str) -> Sequence[Check]:
        first, *others = self._names
        unknown = f"unknown, because the check of {first} failed"
        return [
            Check(first, ok=False, details=details, needed=self._needed),
            *(Check(name, ok=False, details=unknown, needed=self._needed) for name in others),
        ]


def _silent(seconds: float) -> str:
    return f"no response within {seconds:.1f} seconds"


class _TakenBackError(Exception):
    """Signal that ends a transaction which was only a trial."""


def _check_database(database: Database) -> Sequence[Check]:
    with database.session_scope(write=False) as session:
        reached = Check("database", ok=True, details="reachable")
        try:
            check_revision(session.connection())
        except OnApiError as error:
            return [reached, Check("migrations", ok=False, details=error.details)]
        return [reached, Check("migrations", ok=True, details="the schema is up to date")]


async def gateway_problem(node: IpfsNode) -> str | None:
    """Return why the node's gateway, which serves every download, does not return what it is asked
    for; None when it does."""
    try:
        found = await node.block(EMPTY_FILE)
    except NodeError as error:
        return f"The node's gateway failed: {error.details}"
    return None if found == b"" else "The service at the gateway's address is not an IPFS gateway."


def _check_writes(database: Database) -> Sequence[Check]:
    """Write a row unchanged, and roll back: nothing goes to the disk, and no other process is told.
    PostgreSQL also has to take disk space, after its disk was full and until it can again."""
    with suppress(_TakenBackError), database.session_scope() as session:
        session.execute(update(Deployment).values(id=Deployment.id))
        if database.is_postgresql and database.disk_was_full:
            _probe_disk_space(session)
        raise _TakenBackError
    database.disk_was_full = False
    if (file := database.file) is not None and (free := _free_bytes(file)) < LEAST_FREE_BYTES:
        return [
            Check("writes", ok=False, details=f"the database's disk is full: {free} bytes are free")
        ]
    return [Check("writes", ok=True, details="possible")]


def _probe_disk_space(session: Session) -> None:
    try:
        session.execute(_PROBE_DISK_SPACE)
    except ProgrammingError:
        # This role may not create temporary tables: the next write that fails reports it again.
        logger.info(
            "can't check whether the database's disk is full without the TEMPORARY privilege"
        )


def _free_bytes(file: Path) -> int:
    return shutil.disk_usage(file.parent).free
