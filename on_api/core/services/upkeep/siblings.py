"""Serving processes that share an address: the number of this one, and the metrics of all.

Prometheus reaches any one of them, which answers for all: each writes its metrics to a file every
few seconds, and the one asked joins them, with the process as a label. Processes know each other by
these files only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from anyio import to_thread

logger = logging.getLogger(__name__)

WRITE_SECONDS = 2.0
FOLDER = "processes"
"""Folder in the home."""


class Sibling:
    """Serving process with its `number`, counted from 0."""

    def __init__(self, number: int, home: Path) -> None:
        self.number = number
        self._folder = home / FOLDER

    @property
    def is_first(self) -> bool:
        """True if it runs what one process has to run for all: worker and housekeeper."""
        return self.number == 0

    async def run(self, exposition: Callable[[], bytes]) -> None:
        """Write the metrics for the other processes every few seconds, until cancelled."""
        while True:
            try:
                await to_thread.run_sync(self._leave, exposition())
            except OSError as error:
                logger.warning(
                    "could not write the metrics for other processes: %s", error.strerror
                )
            await asyncio.sleep(WRITE_SECONDS)

    def joined(self, own: bytes) -> bytes:
        """Return the metrics of all processes; those of the others are some seconds old at most."""
        found = {str(self.number): own.decode()}
        for path in self._folder.glob("*.prom"):
            with suppress(OSError):
                found.setdefault(path.stem, path.read_text())
        return joined(dict(sorted(found.items())))

    def _leave(self, text: bytes) -> None:
        part = self._folder / f"{self.number}.part"
        part.write_bytes(text)
        part.replace(part.with_suffix(".prom"))


def prepare_folder(home: Path) -> None:
    """Make the folder for the processes' files, and remove those of earlier processes."""
    folder = home / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    for path in folder.glob("*.p*"):
        path.unlink()


def joined(expositions: Mapping[str, str]) -> bytes:
    """Join several processes' metrics into one text: each sample gets its process as a label."""
    families: dict[str, list[str]] = {}
    for process, text in expositions.items():
        samples: list[str] = []
        is_known = False
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                is_known = name in families
                samples = families.setdefault(name, [])
            if not line.startswith("#"):
                samples.append(_labelled(line, process))
            elif not is_known:
                samples.append(line)
    return "".join(f"{line}\n" for lines in families.values() for line in lines).encode()


def _labelled(sample: str, process: str) -> str:
    name, brace, rest = sample.partition("{")
    if brace:
        return f'{name}{{process="{process}",{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{process="{process}"}} {value}'
