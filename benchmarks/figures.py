"""Figures: what was measured, how it is judged, how it is shown. Measures nothing itself."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Figure:
    """One thing measured several times; `theirs` in the same turns, empty for what has no
    counterpart.

    Judged is the median of `ours / theirs`, pair by pair, else of `ours`: `at_least` or `at_most`.
    """

    work: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float] = ()
    against: str = ""
    at_least: float | None = None
    at_most: float | None = None
    database: str = ""

    @property
    def judged(self) -> list[float]:
        """What the goal is about."""
        if not self.theirs:
            return list(self.ours)
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def reached(self) -> bool | None:
        """Whether the goal is; None where there is none."""
        if self.at_least is not None:
            return median(self.judged) >= self.at_least
        return None if self.at_most is None else median(self.judged) <= self.at_most


def in_pairs(
    ours: Callable[[], float], theirs: Callable[[], float], count: int
) -> tuple[list[float], list[float]]:
    """Measure both in turn, `count` times each, after one pair that is not counted: pools and
    caches are filled by it."""
    pairs = [(ours(), theirs()) for _ in range(count + 1)][1:]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def table(figures: Sequence[Figure]) -> str:
    """For people: medians, with min and max in brackets."""
    rows = [("work", "database", "on-api", "against", "judged", "goal", "")]
    for figure in figures:
        at_least = "" if figure.at_least is None else f"≥ {figure.at_least:g}"
        rows.append(
            (
                figure.work,
                figure.database,
                f"{_spread(figure.ours)} {figure.unit}",
                f"{figure.against} {_spread(figure.theirs)}" if figure.theirs else "-",
                _spread(figure.judged),
                at_least or ("" if figure.at_most is None else f"≤ {figure.at_most:g}"),
                {True: "reached", False: "MISSED", None: ""}[figure.reached],
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def write_json(figures: Sequence[Figure], path: Path) -> None:
    """For machines: every single measurement, and on what it was taken."""
    document = {
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        "figures": [
            asdict(figure)
            | {"judged": figure.judged, "median": median(figure.judged), "reached": figure.reached}
            for figure in figures
        ],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return _number(values[0])
    return f"{_number(median(values))} [{_number(min(values))}-{_number(max(values))}]"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
