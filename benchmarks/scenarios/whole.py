"""The process as a whole: its memory and its start."""

from __future__ import annotations

import time

from benchmarks.figures import Figure
from benchmarks.load import measure
from benchmarks.scenarios.registry import Variant, scenario
from benchmarks.stage import MIB, SQLITE, OnApi, Stage
from on_api.tests.cli.processes import peak_memory


@scenario(Variant(SQLITE))
def memory(stage: Stage) -> list[Figure]:
    """The most that a serving process ever holds while a huge file goes up and comes down."""
    with stage.on_api() as on_api:
        before = _peak(on_api)
        file = on_api.upload(stage.sizes.huge)
        measure(on_api.content(file))
        after = _peak(on_api)
    work = f"peak RSS, {stage.sizes.huge // MIB} MiB up and down"
    return [
        Figure("peak RSS after the start", "MiB", [before], at_most=200),
        Figure(work, "MiB", [after], at_most=200),
    ]


@scenario(Variant(SQLITE))
def start(stage: Stage) -> list[Figure]:
    """The second start, as `make run` does it once all is installed."""
    with stage.home() as home:
        seconds = []
        for _ in range(stage.sizes.pairs + 1):
            began = time.perf_counter()
            home.init()
            with home.serving():
                seconds.append(time.perf_counter() - began)
    return [Figure("second start, until ready", "s", seconds[1:], at_most=5)]


def _peak(on_api: OnApi) -> float:
    return max(peak_memory(pid) for pid in on_api.pids()["on-api"]) / MIB
