"""Key files of the first administrators in a home: `admin.key`, and `admin-….key` for each further
database used with the same home. No file is ever overwritten: its key may still be valid."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

MAIN_FILE = "admin.key"
MAX_BYTES = 1024


def keep(home: Path, secret: str) -> Path:
    """Write a new key into a file of its own (mode 0600), which `give_name` may rename."""
    from on_api.core.crypto.tokens import PREFIX, SHOWN_LENGTH

    path = home / f"admin-{secret[len(PREFIX) : SHOWN_LENGTH]}.key"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(descriptor)
    return path


def give_name(path: Path) -> Path:
    """Rename a key's file to `admin.key` unless that exists. Return the file's path."""
    main = path.with_name(MAIN_FILE)
    try:
        os.link(path, main)  # unlike a rename it never replaces
    except OSError:
        return path
    path.unlink()
    return main


def find(home: Path, session: Session) -> Path | None:
    """Return the file with a valid key of this database, if the home has one."""
    from sqlalchemy import exists, select

    from on_api.core.crypto.tokens import SHOWN_LENGTH, is_well_formed
    from on_api.core.models import ApiKey

    for path in (home / MAIN_FILE, *sorted(home.glob("admin-*.key"))):
        try:
            with path.open("rb") as file:
                secret = file.read(MAX_BYTES).decode("ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        is_this = (ApiKey.prefix == secret[:SHOWN_LENGTH]) & ApiKey.revoked_at.is_(None)
        if is_well_formed(secret) and session.scalar(select(exists().where(is_this))):
            return path
    return None
