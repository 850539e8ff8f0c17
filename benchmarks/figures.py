"""Figures: how they are measured in pairs, judged and shown. The only thing measured here is
processor time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

Pids = Callable[[], Mapping[str, Sequence[int]]]
"""Processes whose processor time counts, by their name in a table."""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Reading:
    """One measurement, of `operations` operations."""

    value: float
    operations: int = 1


@dataclass(frozen=True)
class Side:
    """One of two sides that are compared: its measurement, and the processes that do its work."""

    read: Callable[[], Reading]
    pids: Pids


@dataclass(frozen=True)
class Pairs:
    """Measurements taken in turn. Milliseconds of processor time are for each operation, by
    process."""

    ours: list[float]
    theirs: list[float]
    ours_ms: dict[str, list[float]] = field(default_factory=dict)
    theirs_ms: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """One value measured several times; `theirs` in the same turns, empty without a counterpart.

    The median of `ours / theirs`, pair by pair, else that of `ours`, is judged: it must be
    `at_least` or `at_most` so much.
    """

    work: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float] = ()
    against: str = ""
    at_least: float | None = None
    at_most: float | None = None
    database: str = ""
    processes: int = 1
    ours_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    theirs_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        work: str,
        unit: str,
        pairs: Pairs,
        against: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Figure:
        """Return a figure of pairs."""
        return cls(
            work, unit, pairs.ours, pairs.theirs, against, at_least, at_most,
            ours_ms=pairs.ours_ms, theirs_ms=pairs.theirs_ms,
        )  # fmt: skip

    @property
    def judged(self) -> list[float]:
        """Values that the goal is compared with."""
        if not self.theirs:
            return list(self.ours)
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def reached(self) -> bool | None:
        """True if the goal is reached; None if there is none."""
        if self.at_least is not None:
            return median(self.judged) >= self.at_least
        return None if self.at_most is None else median(self.judged) <= self.at_most


def in_pairs(ours: Side, theirs: Side, count: int) -> Pairs:
    """Measure both in turn, `count` times each, after one pair that is not counted: it fills pools
    and caches."""
    pairs = Pairs([], [])
    for turn in range(count + 1):
        for side, values, costs in (
            (ours, pairs.ours, pairs.ours_ms),
            (theirs, pairs.theirs, pairs.theirs_ms),
        ):
            value, spent = _read(side)
            if turn == 0:
                continue
            values.append(value)
            for name, each in spent.items():
                costs.setdefault(name, []).append(each)
    return pairs


def alone(side: Side, count: int) -> tuple[list[float], dict[str, list[float]]]:
    """Measure one side without a counterpart, `count` times: return the values, and milliseconds by
    process."""
    values: list[float] = []
    costs: dict[str, list[float]] = {}
    for _ in range(count):
        value, spent = _read(side)
        values.append(value)
        for name, each in spent.items():
            costs.setdefault(name, []).append(each)
    return values, costs


def table(figures: Sequence[Figure]) -> str:
    """Format figures for people: medians, with minimum and maximum in brackets, and processor time
    for each operation."""
    rows = [("work", "database", "on-api", "against", "judged", "goal", "", "processor time")]
    for figure in figures:
        at_least = "" if figure.at_least is None else f"≥ {figure.at_least:g}"
        rows.append(
            (
                figure.work,
                where(figure.database, figure.processes),
                f"{spread(figure.ours)} {figure.unit}",
                f"{figure.against} {spread(figure.theirs)}" if figure.theirs else "-",
                spread(figure.judged),
                at_least or ("" if figure.at_most is None else f"≤ {figure.at_most:g}"),
                {True: "reached", False: "MISSED", None: ""}[figure.reached],
                _processor(figure),
            )
        )
    return columns(rows)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def where(database: str, processes: int) -> str:
    """Format what a figure was taken on."""
    return database if processes == 1 else f"{database}, {processes} processes"


def spread(values: Sequence[float]) -> str:
    """Format the median, with minimum and maximum in brackets."""
    if len(values) == 1:
        return _number(values[0])
    return f"{_number(median(values))} [{_number(min(values))}-{_number(max(values))}]"


def processor_ms(pids: Sequence[int]) -> float:
    """Return the processor time of running processes since their start, in milliseconds, in user
    mode and in the kernel."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total * 1000 / _TICKS


def _read(side: Side) -> tuple[float, dict[str, float]]:
    before = {name: processor_ms(pids) for name, pids in side.pids().items()}
    reading = side.read()
    after = {name: processor_ms(pids) for name, pids in side.pids().items()}
    spent = {name: (after[name] - before[name]) / reading.operations for name in before}
    return reading.value, spent


def _processor(figure: Figure) -> str:
    def of(costs: Mapping[str, Sequence[float]]) -> str:
        return " + ".join(f"{name} {_number(median(each))}" for name, each in costs.items())

    sides = [text for text in (of(figure.ours_ms), of(figure.theirs_ms)) if text]
    return " | ".join(sides) + (" ms" if sides else "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
