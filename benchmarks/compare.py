"""`python -m benchmarks.compare`: changes since the baseline.

Only ratios taken within one run (on-api beside the same Kubo) are judged, by their spread: a row is
better or worse if the two ranges don't touch. Figures without a counterpart say as much about the
machine as about on-api: they are shown, but not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.figures import Figure, columns, spread, where
from benchmarks.results import read_figures

BASELINE = Path(__file__).parent / "baseline.json"


class Change(StrEnum):
    """Verdict on a row."""

    BETTER = "better"
    WORSE = "WORSE"
    SAME = "within the spread"
    UNJUDGED = "not judged"
    NEW = "new"
    GONE = "not run"


def main(
    run: Annotated[Path, typer.Argument(help="File written by `make bench`.")] = Path("bench.json"),
    baseline: Annotated[Path, typer.Option(help="File to compare it with.")] = BASELINE,
) -> None:
    """Show the change of each row; fails if a row is worse."""
    (before, old), (after, new) = read_figures(baseline), read_figures(run)
    for name, document in (("baseline", before), ("run", after)):
        of = document["versions"].get("on-api")
        typer.echo(f"{name}: {of}, {document['taken_at']}, load {document['load_before']}")
    if before["quick"] != after["quick"]:
        typer.echo(
            "One of the runs was a quick run: its sizes differ, so its ratios may differ as well."
        )
    changes = compare(old, new)
    typer.echo(columns([("work", "on", "baseline", "now", "change", ""), *map(_row, changes)]))
    if any(change is Change.WORSE for _, _, change in changes):
        raise typer.Exit(1)


def compare(
    old: Sequence[Figure], new: Sequence[Figure]
) -> list[tuple[Figure | None, Figure | None, Change]]:
    """Match the rows of both runs, by what was measured and on what; return each pair with its
    verdict."""
    before = {_key(figure): figure for figure in old}
    after = {_key(figure): figure for figure in new}
    return [
        (before.get(key), after.get(key), _change(before.get(key), after.get(key)))
        for key in dict.fromkeys([*before, *after])
    ]


def _change(old: Figure | None, new: Figure | None) -> Change:
    if old is None:
        return Change.NEW
    if new is None:
        return Change.GONE
    if not old.theirs or not new.theirs:
        return Change.UNJUDGED
    less_is_better = new.at_most is not None
    if min(new.judged) > max(old.judged):
        return Change.WORSE if less_is_better else Change.BETTER
    if max(new.judged) < min(old.judged):
        return Change.BETTER if less_is_better else Change.WORSE
    return Change.SAME


def _key(figure: Figure) -> tuple[str, str, int]:
    return figure.work, figure.database, figure.processes


def _row(change: tuple[Figure | None, Figure | None, Change]) -> Sequence[str]:
    old, new, verdict = change
    either = new or old
    if either is None:
        raise ValueError("a row of neither")
    factor = ""
    if old is not None and new is not None and median(old.judged):
        factor = f"{median(new.judged) / median(old.judged) - 1:+.0%}"
    shown = [spread(figure.judged) if figure is not None else "-" for figure in (old, new)]
    return either.work, where(either.database, either.processes), *shown, factor, verdict.value


if __name__ == "__main__":
    typer.run(main)
