"""Folder of a backup: its marker, its lock, and the copies of the database in it.

backup.json              the marker: format and deployment
blocks/XY/MULTIHASH      one file a block
roots.sqlite3            roots whose whole DAG is here: can be made again from all the others
databases/STAMP.sqlite3  the database, and
databases/STAMP.age      the master secrets at that moment, encrypted
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from on_api.core.durable_files import sync
from on_api.core.errors import StartupError
from on_api.core.services.upkeep.backup.block_files import BlockFiles, made_folder, written
from on_api.core.services.upkeep.backup.root_index import RootIndex

MARKER = "backup.json"
FORMAT = 1
MAX_MARKER_BYTES = 64 * 1024
MADE_BY_OTHERS = {"lost+found"}
"""Names that an empty folder may have: that of a file system of its own."""

_DATABASE = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)\.sqlite3")


@dataclass(frozen=True, slots=True)
class SavedDatabase:
    """A copy of the database whose blocks are all in the folder, but for those that were reported
    missing."""

    path: Path

    @property
    def stamp(self) -> str:
        """Moment of the copy, as its file is named."""
        return self.path.stem

    @property
    def secret(self) -> Path:
        """Path of the encrypted master secrets; there is none of a backup without them."""
        return self.path.with_suffix(".age")


class BackupFolder:
    """A folder that is a backup."""

    def __init__(self, path: Path, deployment: str) -> None:
        self.path = path
        self.deployment = deployment
        """Name of the deployment that it belongs to."""
        self.blocks = BlockFiles(path / "blocks")
        self.roots = RootIndex(path / "roots.sqlite3")
        self._databases = path / "databases"

    @classmethod
    def open(cls, path: Path) -> BackupFolder:
        """Open a backup. Raises `StartupError` for a folder that is none, or that can't be read."""
        try:
            with (path / MARKER).open("rb") as file:
                told = json.loads(file.read(MAX_MARKER_BYTES))
            version, deployment = int(told["format"]), str(told["deployment"])
        except FileNotFoundError:
            raise StartupError(
                f"{path} is no backup of on-api: it has no {MARKER}. Name the folder that "
                "`on-api backup` was given."
            ) from None
        except OSError as error:
            raise StartupError(f"Can't read {path / MARKER} ({error.strerror}).") from None
        except (ValueError, KeyError, TypeError):
            raise StartupError(f"{path / MARKER} is damaged, or not on-api's.") from None
        if version != FORMAT:
            raise StartupError(
                f"{path} has the format {version}, this on-api reads {FORMAT}: use the on-api that "
                "made it, or a newer one."
            )
        return cls(path, deployment)

    @classmethod
    def prepare(cls, path: Path, deployment: str) -> BackupFolder:
        """Open a deployment's backup, or begin one in an empty folder.

        Raises `StartupError` for a folder that has something else in it, is another deployment's
        backup, or can't be written.
        """
        try:
            if not (path / MARKER).exists():
                _begin(path, deployment)
            folder = cls.open(path)
            if folder.deployment != deployment:
                raise StartupError(
                    f"{path} is the backup of another deployment ({folder.deployment}, this one is "
                    f"{deployment}): name a folder of its own for each."
                )
            made_folder(folder.path / "blocks")
            made_folder(folder._databases)
        except OSError as error:
            raise StartupError(f"Can't write to {path} ({error.strerror}).") from None
        return folder

    @contextmanager
    def locked(self, *, alone: bool) -> Iterator[None]:
        """Keep other commands away while the block runs; those that only read (not `alone`) don't
        mind each other. Raises `StartupError` when one is at it."""
        descriptor = os.open(self.path / MARKER, os.O_RDWR if alone else os.O_RDONLY)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StartupError(
                f"Another on-api command is at work in {self.path}: wait for its end."
            ) from None
        try:
            yield
        finally:
            os.close(descriptor)

    def databases(self) -> Sequence[SavedDatabase]:
        """Return the copies of the database, the oldest first."""
        if not self._databases.is_dir():
            return []
        names = sorted(path.name for path in self._databases.iterdir())
        return [
            SavedDatabase(self._databases / name) for name in names if _DATABASE.fullmatch(name)
        ]

    def database(self, stamp: str | None = None) -> SavedDatabase:
        """Return one copy of the database, the newest without a `stamp`. Raises `StartupError` when
        it isn't there."""
        saved = [each for each in self.databases() if stamp in {None, each.stamp}]
        if saved:
            return saved[-1]
        if stamp is None:
            raise StartupError(f"No backup in {self.path} has come to its end: run it again.")
        known = ", ".join(each.stamp for each in self.databases()) or "none"
        raise StartupError(f"{self.path} has no database {stamp}. It has: {known}.")

    def draft(self) -> Path:
        """Return the path at which a database is written before its blocks are here; what a killed
        run has left there is removed."""
        for left in self._databases.glob(".draft*"):
            left.unlink()
        return self._databases / ".draft.sqlite3"

    def finish(self, draft: Path, at: datetime, secret: bytes | None) -> SavedDatabase:
        """Give a draft its name, by the moment of its copy, with the sealed secrets beside it."""
        saved = SavedDatabase(self._databases / f"{at:%Y%m%dT%H%M%S.%fZ}.sqlite3")
        if secret is not None:
            written(saved.secret, secret)
        draft.replace(saved.path)
        sync(self._databases)
        return saved

    def drop_all_but(self, newest: int) -> Sequence[SavedDatabase]:
        """Delete all but so many copies of the database. Returns the deleted ones."""
        dropped = self.databases()[:-newest]
        for each in dropped:
            each.path.unlink()
            each.secret.unlink(missing_ok=True)
        return dropped


def _begin(path: Path, deployment: str) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Of a run that was killed here there is the marker's draft.
    others = {each.name for each in path.iterdir()} - MADE_BY_OTHERS - {f"{MARKER}.part"}
    if others:
        raise StartupError(
            f"{path} is neither empty nor a backup of on-api (there is {min(others)}): nothing was "
            "written. Name an empty folder, or a new one."
        )
    told = {"format": FORMAT, "deployment": deployment}
    written(path / MARKER, json.dumps(told, indent=2).encode() + b"\n")
