"""Backing up a tests' server into a folder, and restoring that into a home with a node of its
own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import update

from on_api.core.crypto.age import DEFAULT_LOG_N, Passphrase
from on_api.core.crypto.kdf import Scrypt, memory_needed
from on_api.core.models import Database, Maintenance
from on_api.core.models.database import database_now
from on_api.core.models.revisions import PROJECT
from on_api.core.services.container import Services
from on_api.core.services.upkeep.backup.folder import BackupFolder
from on_api.core.services.upkeep.backup.runner import Backup, BackupReport, Tell
from on_api.core.services.upkeep.backup.verifying import Verification, verify
from on_api.core.settings import Settings
from on_api.tests.conftest import make_settings
from on_api.tests.testing.bundles import beside
from on_api.tests.testing.processes import ON_API, Home

PASSPHRASE = "a passphrase that only the tests know"
FAST_SCRYPT = 10


def tell_nobody(_what: str, _done: int, _total: int, _copied: int) -> None:
    """Show no progress."""


def back_up(
    settings: Settings, folder: Path, *, keep: int | None = None, tell: Tell = tell_nobody
) -> BackupReport:
    """Run a backup beside a server, as another process would."""

    async def run(services: Services) -> BackupReport:
        opens = passphrase()
        backup = Backup(settings, services.database, services.node, [opens], tell)
        return await backup.run(folder, keep)

    return beside(settings, run)


def verified(folder: Path) -> Verification:
    """Verify a backup, its secrets included."""
    return verify(BackupFolder.open(folder), [passphrase()], tell_nobody)


def passphrase() -> Passphrase:
    """Return the passphrase, at a cost for tests."""
    return Passphrase(PASSPHRASE, Scrypt(memory=memory_needed(DEFAULT_LOG_N)), log_n=FAST_SCRYPT)


def passphrase_file(folder: Path) -> str:
    """Write the passphrase into a file; return its path."""
    path = folder / "passphrase"
    path.write_text(f"{PASSPHRASE}\n")
    return str(path)


def restore(home: Home, backup: Path, *options: str) -> dict[str, Any]:
    """Restore into a home by the command, and return its report; everything must be clean."""
    home.path.parent.mkdir(parents=True, exist_ok=True)
    given = passphrase_file(home.path.parent)
    done = home.run("restore", str(backup), "--passphrase-file", given, "--json", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


@contextmanager
def reading(home: Home, key: str) -> Iterator[httpx.Client]:
    """Serve from a home, and open a client with a key of before."""
    home.path.mkdir(exist_ok=True)
    with home.serving(), home.client(key) as client:
        yield client


@contextmanager
def running(home: Home, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of a home, and kill it at the block's end if it still runs."""
    home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home.path.parent / "command.log").open("ab") as log:
        process = subprocess.Popen(
            [ON_API, *arguments],
            env=home.environment,
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def expire_turns(url: str) -> None:
    """End the turns at maintenance of commands that were killed, as a minute would."""
    database = Database(make_settings(Path(), url))
    with database.session_scope() as session:
        expired = database_now(-timedelta(seconds=1))
        session.execute(update(Maintenance).values(lease_until=expired))
    database.dispose()


def content_of(client: httpx.Client, file_id: object) -> bytes:
    """Return the content of a file that is served."""
    answer = client.get(f"/v1/files/{file_id}/content")
    assert answer.status_code == 200, answer.text
    return answer.content
