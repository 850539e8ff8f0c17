"""Conditions of a run: the machine, its load, and the versions of everything."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from on_api.core.ipfs.daemon.version import KUBO_VERSION
from on_api.core.models.revisions import PROJECT

_PACKAGES = (
    "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "pydantic", "sqlalchemy", "psycopg2",
    "aiohttp", "pycryptodome", "cryptography",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Return a description of the machine."""
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_mib": int(memory[1]) // 1024 if memory else None,
        "kernel": platform.release(),
        "system": platform.system(),
    }


def versions(postgres: str | None) -> Mapping[str, str | None]:
    """Return what was measured. `postgres`: the server's own version, if one was started."""
    return {
        "on-api": _commit(),
        "python": platform.python_version(),
        "kubo": KUBO_VERSION,
        "postgresql": postgres,
        "wrk": shutil.which("wrk") and "installed",
        **{name: _version(name) for name in _PACKAGES},
    }


def load() -> list[float]:
    """Return the load averages over 1, 5 and 15 minutes."""
    return [round(each, 2) for each in os.getloadavg()]


def _version(package: str) -> str | None:
    for name in (package, f"{package}-binary"):
        try:
            return version(name)
        except ModuleNotFoundError:
            continue
    return None


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607 (wherever git is)
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or version("on-api")
