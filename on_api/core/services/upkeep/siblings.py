"""One of several serving processes that share an address: which one it is, and what all of them
have measured.

Whoever of them Prometheus happens to reach answers for all: each leaves its metrics in a file every
few seconds, and the one asked joins them, told apart by a label. Knows no process but by its file.
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
"""In the home."""


class Sibling:
    """The process `number`, counted from 0."""

    def __init__(self, number: int, home: Path) -> None:
        self.number = number
        self._folder = home / FOLDER

    @property
    def is_first(self) -> bool:
        """Whether it does what one of them has to do for all: the worker's and the house's work."""
        return self.number == 0

    async def run(self, exposition: Callable[[], bytes]) -> None:
        """Leave the metrics for the others every few seconds, until cancelled."""
        while True:
            try:
                await to_thread.run_sync(self._leave, exposition())
            except OSError as error:
                logger.warning("the metrics can't be left for other processes: %s", error.strerror)
            await asyncio.sleep(WRITE_SECONDS)

    def joined(self, own: bytes) -> bytes:
        """What all processes have measured; of the others, as it was some seconds ago at most."""
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
    """Make the folder for the processes' files, and remove those of processes that were."""
    folder = home / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    for path in folder.glob("*.p*"):
        path.unlink()


def joined(expositions: Mapping[str, str]) -> bytes:
    """Several processes' metrics as one text: each sample gets its process as a label."""
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
