"""Kind of this on-api, a checkout or an installed package, and the home that is used when none is
named.

Looks at folders' names only; imports nothing of on-api.
"""

from __future__ import annotations

import os
from pathlib import Path

import on_api

IS_INSTALLED = Path(on_api.__file__).with_name("alembic").is_dir()
"""True in an installed package, which has the database's revisions inside; in a checkout they are
beside `on_api` (ADR 0033)."""

LOCAL_HOME = Path(".on-api")
"""Home in the current folder."""


def default_home() -> Path:
    """Return the home that is used when ON_API_HOME names none: for serving, commands and Alembic
    alike.

    It is `./.on-api` in a checkout, and wherever that folder exists; else, for an installed
    package, `$XDG_DATA_HOME/on-api` or `~/.local/share/on-api`: a command that one may call from
    any folder must find the same data again.
    """
    if not IS_INSTALLED or LOCAL_HOME.is_dir():
        return LOCAL_HOME
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():  # the XDG specification ignores relative ones
        try:
            data = Path.home() / ".local" / "share"
        except RuntimeError:  # an account without a home folder, as in some containers
            return LOCAL_HOME
    return data / "on-api"
