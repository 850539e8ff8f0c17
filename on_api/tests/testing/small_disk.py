"""A file system small enough for a test to fill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """Mount a file system in memory at `folder`, which is created. Skips the test if mounting is
    not permitted."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounts a small file system, as root")
    folder.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a file system here")
    try:
        yield folder
    finally:
        subprocess.run(["/bin/umount", str(folder)], check=True)
