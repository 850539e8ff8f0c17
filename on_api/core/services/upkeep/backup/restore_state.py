"""State of a restoration, in a file of the home: while it is there, nothing else begins there."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from on_api.core.errors import StartupError
from on_api.core.services.upkeep.backup.block_files import written

FILE = "restore.json"
MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class RestoreState:
    """A restoration under way."""

    id: uuid.UUID
    """Job after which its pins are named, and by which its database is recognised."""
    backup: str
    """Folder of the backup."""
    stamp: str
    """Copy of the database that is restored."""

    def write(self, home: Path) -> None:
        """Write it into the home, durable."""
        told = {name: str(value) for name, value in asdict(self).items()}
        written(home / FILE, json.dumps(told, indent=2).encode() + b"\n")


def read_state(home: Path) -> RestoreState | None:
    """Return the restoration that is under way in a home, or None. Raises `StartupError` when the
    file can't be read."""
    try:
        with (home / FILE).open("rb") as file:
            told = json.loads(file.read(MAX_BYTES))
        return RestoreState(uuid.UUID(told["id"]), str(told["backup"]), str(told["stamp"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise StartupError(
            f"Can't read {home / FILE}, by which a restore is told: remove the home, and restore "
            "into an empty one."
        ) from None


def remove_state(home: Path) -> None:
    """End the restoration."""
    (home / FILE).unlink(missing_ok=True)


def require_no_restore(home: Path) -> None:
    """Raise `StartupError` while a restoration into this home has not come to its end."""
    state = read_state(home)
    if state is not None:
        raise StartupError(
            f"A restore into {home} has not come to its end: run `on-api restore {state.backup}` "
            "again, it goes on where it stopped; or remove that home."
        )
