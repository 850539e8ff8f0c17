"""Progress of long work: one line that is overwritten in a terminal, and a line now and then
anywhere else (a log, a pipe)."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TextIO

BAR_WIDTH = 24
LOG_SECONDS = 10.0
"""Seconds between two lines where lines can't be overwritten."""
RATE_SECONDS = 30.0
"""Seconds over which a rate is measured."""


@dataclass(frozen=True, slots=True)
class Progress:
    """State of the work; `bytes` is None if only items are counted, `total_bytes` while it is
    unknown."""

    what: str
    items: int
    total: int
    bytes: int | None
    total_bytes: int | None


class ProgressLine:
    """Writer to standard error, so that standard output holds the result alone."""

    def __init__(self, output: TextIO | None = None) -> None:
        self._output = output or sys.stderr
        self._in_place = self._output.isatty()
        self._seen: list[tuple[float, Progress]] = []
        self._written_at = float("-inf")
        self._written = ""

    def note(self, at: float, progress: Progress) -> None:
        """Record the progress at a moment (in seconds), for the rate."""
        recent = [each for each in self._seen if at - each[0] < RATE_SECONDS]
        self._seen = [*recent, (at, progress)]

    def show(self, progress: Progress, *, last: bool = False) -> None:
        """Write the progress, unless the last line was written too recently."""
        now = time.monotonic()
        self.note(now, progress)
        is_new = progress.what != self._written
        if not self._in_place and not last and not is_new and now - self._written_at < LOG_SECONDS:
            return
        self._written_at, self._written = now, progress.what
        line = self._line(progress)
        # Cleared to its end: the previous line may have been longer.
        self._output.write(f"\r{line}\x1b[K" if self._in_place else f"{line}\n")
        self._output.flush()

    def end(self) -> None:
        """End the line, so that output goes on below it."""
        if self._in_place and self._written:
            self._output.write("\n")
            self._output.flush()

    def _line(self, progress: Progress) -> str:
        words = [progress.what]
        if progress.total:
            done = min(1.0, progress.items / progress.total)
            if self._in_place:
                filled = round(done * BAR_WIDTH)
                words.append("[" + "#" * filled + "-" * (BAR_WIDTH - filled) + "]")
            words.append(f"{progress.items} of {progress.total} items ({done:.0%})")
        else:
            words.append(f"{progress.items} items")
        if progress.bytes is not None:
            words.append(size(progress.bytes))
        rate, left = self.speed(progress)
        if rate is not None:
            words.append(f"{size(rate)}/s")
        if left is not None:
            words.append(f"{duration(left)} left")
        return "  ".join(words)

    def speed(self, progress: Progress) -> tuple[float | None, float | None]:
        """Return bytes per second, and the seconds left, estimated by bytes or else by items."""
        first_at, first = self._seen[0]
        seconds = self._seen[-1][0] - first_at
        if seconds < 1:
            return None, None
        rate = None
        if progress.bytes is not None and first.bytes is not None:
            rate = max(0.0, (progress.bytes - first.bytes) / seconds)
        pace = (progress.items - first.items) / seconds
        if progress.bytes is not None and progress.total_bytes and rate:
            return rate, max(0, progress.total_bytes - progress.bytes) / rate
        left = (progress.total - progress.items) / pace if pace > 0 and progress.total else None
        return rate, left


def size(value: float) -> str:
    """Format a number of bytes for a person."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """Format a duration in seconds for a person."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
