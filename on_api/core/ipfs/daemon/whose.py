"""Check that the listener at a loopback port is the Kubo that runs on a repo of ours.

Kubo holds `repo.lock` while it runs and writes the address of its RPC into the repo's file `api`
once it listens there; on-api removes an old one before it starts Kubo. On Linux the kernel is
consulted as well, whether the listening socket belongs to that process. Sends nothing.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import sys
from pathlib import Path

API_FILE = "api"
_ADDRESS = re.compile(r"/ip4/127\.0\.0\.1/tcp/(\d{1,5})")
_LISTENING = "0A"
_LOOPBACK_OR_ALL = {"0100007F", "00000000", "0" * 32, "0000000000000000FFFF00000100007F"}
"""Local addresses of /proc/net/tcp and tcp6 that take connections to 127.0.0.1."""


def lock_holder(lock: Path) -> int | None:
    """Return the process that holds a POSIX record lock on `lock`, without taking it; None if it is
    free.

    0 or less stands for a process that can't be seen from here.
    """
    # struct flock: Linux has type, whence, start, length, pid; BSDs and macOS have start, length,
    # pid, type, whence.
    linux = sys.platform == "linux"
    layout = "hhqqi4x" if linux else "qqihh"
    write = fcntl.F_WRLCK
    question = (write, os.SEEK_SET, 0, 0, 0) if linux else (0, 0, 0, write, os.SEEK_SET)
    try:
        with lock.open("rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(layout, *question))
    except FileNotFoundError:
        return None
    fields = struct.unpack(layout, answer)
    kind, pid = (fields[0], fields[4]) if linux else (fields[3], fields[2])
    return None if kind == fcntl.F_UNLCK else int(pid)


def rpc_port_of(repo: Path) -> int | None:
    """Return the loopback port at which the Kubo that runs on this repo takes RPC calls.

    None while none runs, or it doesn't listen yet, or another process listens in its place.
    """
    try:
        holder = lock_holder(repo / "repo.lock")
        address = (repo / API_FILE).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    form = _ADDRESS.fullmatch(address)
    if holder is None or form is None:
        return None
    port = int(form[1])
    return None if _is_listener(holder, port) is False else port


def _is_listener(pid: int, port: int) -> bool | None:
    """Return whether this process listens at a loopback port; None where the kernel doesn't say."""
    try:
        sockets = _listening_at(port)
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return None
    if not sockets:
        return None
    for descriptor in descriptors:
        try:
            if str(descriptor.readlink()) in sockets:
                return True
        except OSError:
            continue  # closed meanwhile
    return False


def _listening_at(port: int) -> set[str]:
    """Return the sockets that listen at a port of loopback, as links in /proc name them."""
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net") / table
        if table == "tcp6" and not path.exists():
            continue
        for line in path.read_text("ascii").splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            address, _, number = local.partition(":")
            if state == _LISTENING and address in _LOOPBACK_OR_ALL and int(number, 16) == port:
                found.add(f"socket:[{rest[5]}]")
    return found
