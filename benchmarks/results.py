"""A run as a JSON file, for later comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Figure


@dataclass
class Run:
    """Figures of one run, and what they were taken on. `failures`: reason by scenario."""

    machine: Mapping[str, Any]
    versions: Mapping[str, str | None] = field(default_factory=dict)
    quick: bool = False
    load_before: Sequence[float] = ()
    load_after: Sequence[float] = ()
    figures: list[Figure] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write every single measurement, and what it was taken on."""
        document = {
            "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **{key: value for key, value in asdict(self).items() if key != "figures"},
            "figures": [
                asdict(each)
                | {"judged": each.judged, "median": median(each.judged), "reached": each.reached}
                for each in self.figures
            ],
        }
        path.write_text(json.dumps(document, indent=2) + "\n")


def read_figures(path: Path) -> tuple[dict[str, Any], list[Figure]]:
    """Read a file that `Run.write` wrote: the whole document, and its figures."""
    document = json.loads(path.read_text())
    derived = {"judged", "median", "reached"}
    figures = [
        Figure(**{key: value for key, value in each.items() if key not in derived})
        for each in document["figures"]
    ]
    return document, figures
