"""Verification of a backup: every block hashed, every copy of the database read, every DAG that one
of them needs followed. Needs neither a database nor a node."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from on_api.core.crypto.age import AgeError, Identity, start_size
from on_api.core.crypto.secrets import SecretCopy
from on_api.core.errors import StartupError
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.services.content.walking import DamagedError
from on_api.core.services.upkeep.backup.dag_walk import walk
from on_api.core.services.upkeep.backup.damages import MOST_TROUBLES, DamageReport
from on_api.core.services.upkeep.backup.folder import BackupFolder, SavedDatabase
from on_api.core.services.upkeep.backup.runner import Tell
from on_api.core.services.upkeep.backup.saved_rows import SavedRows

MOST_SECRET_BYTES = 1024 * 1024


@dataclass
class Verification(DamageReport):
    """Findings of a verification."""

    databases: Sequence[str] = ()
    """Stamps of the copies of the database."""
    blocks: int = 0
    bytes: int = 0
    damaged_blocks: list[str] = field(default_factory=list)
    """Blocks that aren't what their names say. They are set aside, so that the next backup copies
    them anew."""
    contents: int = 0
    secrets: int = 0
    """Copies of the master secrets."""
    troubles: list[str] = field(default_factory=list)
    """Everything else that is wrong."""

    @property
    def clean(self) -> bool:
        """True if all of it can be restored."""
        return not (self.troubles or self.damaged or self.damaged_blocks)


def verify(folder: BackupFolder, identities: Sequence[Identity], tell: Tell) -> Verification:
    """Read a whole backup. With `identities` the copies of the master secrets are opened and
    compared with the databases; else only their form is checked."""
    found = Verification()
    saved = folder.databases()
    found.databases = [each.stamp for each in saved]
    if not saved:
        found.troubles.append("no backup has come to its end here: there is no database")
    _check_blocks(folder, found, tell)
    seen: set[str] = set()
    for each in saved:
        rows = SavedRows(each.path)
        if (trouble := rows.trouble()) is not None:
            found.troubles.append(f"the database {each.path.name} is damaged: {trouble}")
            continue
        _check_secret(each, rows, identities, found)
        _check_contents(folder, rows, seen, found, tell)
    return found


def _check_blocks(folder: BackupFolder, found: Verification, tell: Tell) -> None:
    for path, cid in folder.blocks.all():
        try:
            found.bytes += len(folder.blocks.read(cid))
        except DamagedError as error:
            found.damaged_blocks.append(f"{path.relative_to(folder.path)}: {error}")
            with suppress(OSError):  # a copy that can't be written is verified all the same
                folder.blocks.set_aside(cid)
        found.blocks += 1
        tell("reading blocks", found.blocks, 0, found.bytes)


def _check_contents(
    folder: BackupFolder, rows: SavedRows, seen: set[str], found: Verification, tell: Tell
) -> None:
    total = rows.count()
    done = 0
    lost: list[str] = []
    for page in rows.needed():
        for content in page:
            done += 1
            tell("following links", done, total, found.bytes)
            if content.cid in seen:
                continue
            seen.add(content.cid)
            found.contents += 1
            troubles = _troubles(folder, content.cid)
            if not troubles:
                continue
            lost.append(content.cid)
            found.note(content, troubles, rows)
    if lost:
        with suppress(StartupError):  # on a copy that can't be written
            folder.roots.forget(lost)


def _troubles(folder: BackupFolder, cid: str) -> Sequence[str]:
    troubles: list[str] = []
    root = Cid.from_text(cid)
    for _, block in walk(folder.blocks, folder.roots, root, reads_leaves=False):
        if isinstance(block, DamagedError):
            troubles.append(str(block))
            if len(troubles) == MOST_TROUBLES:
                break
    return troubles


def _check_secret(
    saved: SavedDatabase, rows: SavedRows, identities: Sequence[Identity], found: Verification
) -> None:
    if not saved.secret.exists():
        return  # made without it, or deleted: another copy is then needed anyway
    found.secrets += 1
    try:
        with saved.secret.open("rb") as file:
            sealed = file.read(MOST_SECRET_BYTES)
        if not identities:
            start_size(sealed)
            return
        copy = SecretCopy.opened(sealed, identities)
    except (AgeError, OSError, ValueError, StartupError) as error:
        found.troubles.append(f"the master secret {saved.secret.name} can't be opened: {error}")
        return
    version = rows.secret_version()
    if version is not None and version not in copy.versions:
        found.troubles.append(
            f"{saved.secret.name} doesn't have the master secret that its database uses"
        )
