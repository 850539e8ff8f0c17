"""Writer of the node's log, a program of its own: `python log_writer.py PATH BYTES FILES`.

Writes standard input to PATH. Before the file grows beyond BYTES it is renamed to PATH.1, and older
ones on to .2 and so on, of which FILES are kept. No line is lost, and none divided that has less
than `CHUNK_BYTES`.

It is no thread of on-api: if on-api is killed, Kubo is to end in order, and would die of SIGPIPE at
its next line instead. This program ends when nobody holds the other end of its pipe any more, and
by no signal that a terminal or a service manager sends to all. Imports nothing of on-api: with
Python's -I and -S it starts in a moment.
"""

from __future__ import annotations

import os
import signal
import sys

CHUNK_BYTES = 64 * 1024


class RotatedLog:
    """A log of which `files` older ones are kept, each of at most `size` bytes, which must be more
    than twice `CHUNK_BYTES`. Raises `OSError` if it can't be opened at first."""

    def __init__(self, path: str, size: int, files: int) -> None:
        self._path = path
        self._size = size
        self._files = files
        self._open()

    def write(self, lines: bytes) -> None:
        """Write lines that stay together. What can't be written is dropped, as when Kubo writes the
        file itself: a full disk must not end the node."""
        try:
            if self._written and self._written + len(lines) > self._size:
                self._rotate()
            while lines:
                count = os.write(self._descriptor, lines)
                self._written += count
                lines = lines[count:]
        except OSError:
            return

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._written = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        for number in range(self._files - 1, 0, -1):
            if os.path.exists(f"{self._path}.{number}"):
                os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
        os.replace(self._path, f"{self._path}.1")
        before = self._descriptor
        self._open()
        os.close(before)


def copy(source: int, log: RotatedLog) -> None:
    """Write all that comes from a descriptor, until its end, to the log."""
    begun = b""
    while data := os.read(source, CHUNK_BYTES):
        whole, end, begun = (begun + data).rpartition(b"\n")
        if len(begun) >= CHUNK_BYTES:
            end, begun = end + begun, b""
        if whole or end:
            log.write(whole + end)
    if begun:
        log.write(begun)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    copy(0, RotatedLog(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
