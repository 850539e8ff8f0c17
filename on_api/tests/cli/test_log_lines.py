"""Logs that another program writes and renames."""

from __future__ import annotations

import queue
import threading
from itertools import chain
from pathlib import Path

import pytest

from on_api.cli import log_lines
from on_api.cli.log_lines import lines_of
from on_api.core.errors import StartupError


def test_a_log_is_read_to_its_end(tmp_path: Path) -> None:
    """A line that isn't at its end yet is none."""
    log = tmp_path / "log"
    log.write_bytes(b"one\ntwo\xff\n" + b"x\n" * 1000 + b"begun")
    pieces = list(lines_of(log, follow=False))
    assert list(chain(*pieces)) == ["one\n", "two\N{REPLACEMENT CHARACTER}\n", *["x\n"] * 1000]
    assert max(map(len, pieces)) == log_lines.LINES_AT_ONCE
    with pytest.raises(StartupError, match="Can't read"):
        list(lines_of(tmp_path / "missing", follow=False))


def test_no_line_is_lost_when_a_log_is_renamed_or_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer goes on in the old file until it is told of the new one."""
    monkeypatch.setattr(log_lines, "LOOK_AGAIN_SECONDS", 0.01)
    log, came = tmp_path / "log", queue.Queue[str]()

    def read() -> None:
        for lines in lines_of(log, follow=True):
            for line in lines:
                came.put(line)
                if line == "end\n":
                    return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()  # before there is a log
    with log.open("ab", buffering=0) as writer:
        writer.write(b"1\n2")
        assert came.get(timeout=10) == "1\n"
        log.rename(tmp_path / "log.1")
        writer.write(b"2\n3\n")
        assert [came.get(timeout=10) for _ in range(2)] == ["22\n", "3\n"]
    log.write_bytes(b"4\n5\n")
    assert [came.get(timeout=10) for _ in range(2)] == ["4\n", "5\n"]
    log.write_bytes(b"6\n")
    assert came.get(timeout=10) == "6\n"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"end\n")
    reader.join(10)
    assert not reader.is_alive()
