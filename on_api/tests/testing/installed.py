"""Third-party packages that tests use, installed once for all checkouts and processes into the
cache folder beside Kubo."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from on_api.core.ipfs.daemon.binary import cache_folder, inherited_environment


def npm_packages(name: str, *packages: str) -> Path:
    """Return a `node_modules` with packages (`NAME@VERSION`), installed without their scripts."""

    def install(folder: Path) -> None:
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder))
        _run(["npm", "install", *options, *packages])

    return _once(name, packages, install) / "node_modules"


def python_packages(name: str, *packages: str) -> Path:
    """Return the folder of programs of a virtual environment with packages (`NAME==VERSION`)."""

    def install(folder: Path) -> None:
        _run([sys.executable, "-m", "venv", str(folder)])
        options = ("--quiet", "--disable-pip-version-check")
        _run([str(folder / "bin/python"), "-m", "pip", "install", *options, *packages])

    return _once(name, packages, install) / "bin"


def _once(name: str, packages: Sequence[str], install: Callable[[Path], None]) -> Path:
    folder = cache_folder().parent.parent / name
    return once(folder / hashlib.sha256("\n".join(packages).encode()).hexdigest()[:16], install)


def once(ready: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder that one of several processes makes, while the others wait."""
    ready.parent.mkdir(parents=True, exist_ok=True)
    with (ready.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        complete = ready / "complete"
        if not complete.exists():  # a virtual environment can't be moved, so it is made in place
            shutil.rmtree(ready, ignore_errors=True)
            make(ready)
            complete.touch()
    return ready


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, env=inherited_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
