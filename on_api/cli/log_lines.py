"""Lines of a log that another program writes and may rotate by renaming."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from on_api.core.errors import StartupError

LINES_AT_ONCE = 500
LOOK_AGAIN_SECONDS = 1.0


def lines_of(path: Path, *, follow: bool) -> Iterator[list[str]]:
    """Yield all lines from the beginning, in batches; with `follow` also future ones, through
    rotations. An incomplete line is held until its end is written.

    Raises `StartupError` for a file that can't be read.
    """
    while True:
        try:
            file = path.open("rb")
        except OSError as error:
            if follow and isinstance(error, FileNotFoundError):
                time.sleep(LOOK_AGAIN_SECONDS)
                continue
            raise StartupError(f"Can't read {path} ({error.strerror}).") from None
        with file:
            yield from _until_renamed(file, path, follow=follow)
        if not follow:
            return


def _until_renamed(file: BinaryIO, path: Path, *, follow: bool) -> Iterator[list[str]]:
    begun = b""
    is_last = not follow
    while True:
        lines: list[str] = []
        while len(lines) < LINES_AT_ONCE and (read := file.readline()):
            begun += read
            if begun.endswith(b"\n"):
                lines.append(begun.decode("utf-8", "replace"))
                begun = b""
        if lines:
            yield lines
        elif is_last:
            return
        elif not _is_at(file, path):
            is_last = True  # once more, for what came between the last read and the rename
        else:
            time.sleep(LOOK_AGAIN_SECONDS)


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Return whether the file is still the one at `path`, and not shorter than what was read."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return True  # the new file is not there yet
    here = os.fstat(file.fileno())
    return os.path.samestat(here, there) and here.st_size >= file.tell()
