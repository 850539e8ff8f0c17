"""A run of a backup, beside a running on-api: the database first, the blocks after it, and no
garbage collection meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anyio import to_thread

from on_api.core.crypto.age import Recipient
from on_api.core.crypto.secrets import SecretCopy
from on_api.core.errors import Conflict, DatabaseUnavailable, ServiceUnavailable
from on_api.core.ipfs.port import IpfsNode
from on_api.core.models import Database
from on_api.core.services.accounts import audit
from on_api.core.services.accounts.audit import COMMAND_LINE
from on_api.core.services.content.maintenance import BACKUP, Turn
from on_api.core.services.content.pin_names import deployment
from on_api.core.services.upkeep.backup.dag_saver import DagSaver
from on_api.core.services.upkeep.backup.damages import DamageReport
from on_api.core.services.upkeep.backup.folder import BackupFolder
from on_api.core.services.upkeep.backup.saved_rows import Needed, SavedRows
from on_api.core.services.upkeep.backup.snapshots import copy_database
from on_api.core.settings import Settings

DAGS_AT_ONCE = 8
WAIT_SECONDS = 600.0
"""Seconds to wait for the end of a garbage collection, or of a backup that was killed."""
LOOK_SECONDS = 1.0

Tell = Callable[[str, int, int, int], None]
"""Function that is told what is being done, how many of how many are done, and the bytes copied."""


@dataclass
class BackupReport(DamageReport):
    """Result of a run. `outcome`: `complete`, `damaged` (what the node has lost is missing) or
    `failed`."""

    outcome: str = "failed"
    database: str | None = None
    """Stamp of the copied database; None unless the run came to its end."""
    contents: int = 0
    """Contents whose DAGs are needed."""
    copied_blocks: int = 0
    copied_bytes: int = 0
    seconds: float = 0.0
    dropped_databases: int = 0

    def as_result(self) -> dict[str, Any]:
        """Return what is recorded of the run: no name of anybody's file."""
        result = asdict(self)
        del result["damages"]
        return result


class Backup:
    """Backups of one deployment. `recipients` can open the copy of its master secrets; None leaves
    them out."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        node: IpfsNode,
        recipients: Sequence[Recipient] | None,
        tell: Tell,
    ) -> None:
        self._settings = settings
        self._database = database
        self._node = node
        self._recipients = recipients
        self._tell = tell

    async def run(self, path: Path, keep: int | None = None) -> BackupReport:
        """Bring the backup in a folder up to date, and begin one in an empty folder. With `keep`,
        only so many copies of the database stay.

        Raises `StartupError` for a folder that can't be used, `Conflict` while another backup
        runs or a collection doesn't end, a `NodeError` or `DatabaseUnavailable` when one of them
        can't be asked. What was copied until then stays, and the next run goes on from there.
        """
        began = time.monotonic()
        await self._node.peer_id()
        sealed = await to_thread.run_sync(self._sealed_secrets)
        name = await to_thread.run_sync(self._begin)
        folder = await to_thread.run_sync(BackupFolder.prepare, path, name)
        report = BackupReport()
        with folder.locked(alone=True):
            turn = await self._turn()
            try:
                async with turn.kept():
                    draft = folder.draft()
                    at = datetime.now(UTC)
                    await to_thread.run_sync(
                        copy_database, self._database, self._settings, draft, self._tell_rows
                    )
                    await self._save_blocks(folder, SavedRows(draft), turn, report)
                    saved = await to_thread.run_sync(folder.finish, draft, at, sealed)
                    report.database = saved.stamp
                    report.outcome = "damaged" if report.damaged else "complete"
                    if keep is not None:
                        dropped = await to_thread.run_sync(folder.drop_all_but, keep)
                        report.dropped_databases = len(dropped)
            finally:
                report.seconds = round(time.monotonic() - began, 3)
                await to_thread.run_sync(turn.end, report.as_result())
        return report

    async def _turn(self) -> Turn:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return await to_thread.run_sync(Turn, self._database, BACKUP)
            except Conflict as error:
                if time.monotonic() > deadline:
                    raise
                self._tell(f"waiting ({error.details.rstrip('.')})", 0, 0, 0)
            await asyncio.sleep(LOOK_SECONDS)

    async def _save_blocks(
        self, folder: BackupFolder, rows: SavedRows, turn: Turn, report: BackupReport
    ) -> None:
        report.contents = await to_thread.run_sync(rows.count)
        await to_thread.run_sync(folder.blocks.clear_parts)
        saver = DagSaver(self._node, folder.blocks, folder.roots)
        places = asyncio.Semaphore(DAGS_AT_ONCE)
        done = 0

        async def save(content: Needed) -> None:
            nonlocal done
            async with places:
                troubles = await saver.save(content.cid)
            if troubles:
                await to_thread.run_sync(report.note, content, troubles, rows)
            done += 1
            self._tell("copying blocks", done, report.contents, saver.copied_bytes)

        try:
            pages = rows.needed()
            while page := await to_thread.run_sync(next, pages, None):
                known = await to_thread.run_sync(
                    folder.roots.known, [content.cid for content in page]
                )
                done += len(known)
                with _first_error():
                    async with asyncio.TaskGroup() as group:
                        for content in page:
                            if content.cid not in known:
                                group.create_task(save(content))
                with suppress(DatabaseUnavailable):  # it may be back before the turn has expired
                    await to_thread.run_sync(_require, turn)
            await saver.settle()
            await to_thread.run_sync(_require, turn)
        finally:
            report.copied_blocks, report.copied_bytes = saver.copied_blocks, saver.copied_bytes
        self._tell("copying blocks", done, report.contents, saver.copied_bytes)

    def _sealed_secrets(self) -> bytes | None:
        if self._recipients is None:
            return None
        return SecretCopy.of(self._settings).sealed_for(self._recipients)

    def _begin(self) -> str:
        """Record who takes a copy of everything. Returns the deployment's name."""
        with self._database.session_scope() as session:
            with_secret = self._recipients is not None
            audit.record(session, COMMAND_LINE, "backup", "deployment", with_secret=with_secret)
            return deployment(session).name

    def _tell_rows(self, what: str, done: int, total: int) -> None:
        self._tell(what, done, total, 0)


def _require(turn: Turn) -> None:
    if not turn.renew():
        raise ServiceUnavailable(
            "The database could not be reached for so long that garbage may have been collected "
            "meanwhile: run the backup again, it goes on from here."
        )


@contextmanager
def _first_error() -> Iterator[None]:
    """Raise the first error of a group of tasks by itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
