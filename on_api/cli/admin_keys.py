"""The first administrators' keys in a home, one file each: `admin.key`, and for further databases
that are used with the same home `admin-….key`. None is ever written over: its key may live."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

MAIN_FILE = "admin.key"
MAX_BYTES = 1024


def keep(home: Path, secret: str) -> Path:
    """Write a new key into a file of its own (0600), which `give_name` may rename."""
    from on_api.core.crypto.tokens import PREFIX, SHOWN_LENGTH

    path = home / f"admin-{secret[len(PREFIX) : SHOWN_LENGTH]}.key"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(descriptor)
    return path


def give_name(path: Path) -> Path:
    """Rename a key's file to `admin.key` unless there is one. Returns where it is."""
    main = path.with_name(MAIN_FILE)
    try:
        os.link(path, main)  # unlike a renaming it never replaces
    except OSError:
        return path
    path.unlink()
    return main


def find(home: Path, session: Session) -> Path | None:
    """The file with a key of this database, if the home has one."""
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
