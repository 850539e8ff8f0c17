"""The process as a whole: its memory, its start, and its idle load."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import Figure, processor_ms
from benchmarks.load import measure
from benchmarks.scenarios.registry import Variant, scenario
from benchmarks.stage import MIB, POSTGRESQL, SQLITE, OnApi, Stage
from on_api.tests.testing.processes import peak_memory


@scenario(Variant(SQLITE))
def memory(stage: Stage) -> list[Figure]:
    """Measure the peak memory of a serving process while a huge file goes up and comes down."""
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
    """Measure the second start, as `make run` does it once all is installed."""
    with stage.home() as home:
        seconds = []
        for _ in range(stage.sizes.pairs + 1):
            began = time.perf_counter()
            home.init()
            with home.serving():
                seconds.append(time.perf_counter() - began)
    return [Figure("second start, until ready", "s", seconds[1:], at_most=5)]


@scenario(Variant(SQLITE), Variant(POSTGRESQL))
def idle(stage: Stage) -> list[Figure]:
    """Measure on-api with its worker while no request comes. The load that its own requests add to
    the node is the difference to the same node while on-api is stopped."""
    seconds = stage.sizes.idle
    with stage.on_api() as on_api:
        time.sleep(seconds / 10)  # until the start is over
        pids = on_api.pids()
        ours, node = _shares([pids["on-api"], pids["node"]], seconds)
        memory = sum(map(_memory, pids["on-api"])) / MIB
        with _stopped(pids["on-api"]):
            (alone,) = _shares([pids["node"]], seconds)
    work = f"idle, {seconds} s"
    return [
        Figure(f"{work}: on-api", "% of a core", [ours], at_most=0.5),
        Figure(f"{work}: added to the node", "% of a core", [node - alone], at_most=0.2),
        Figure(f"{work}: RSS", "MiB", [memory], at_most=120),
    ]


def _shares(groups: Sequence[Sequence[int]], seconds: float) -> list[float]:
    """Return the processor time of each group of processes over `seconds`, in % of a core."""
    before = list(map(processor_ms, groups))
    began = time.perf_counter()
    time.sleep(seconds)
    after = list(map(processor_ms, groups))
    took = 1000 * (time.perf_counter() - began)
    return [100 * (last - first) / took for first, last in zip(before, after, strict=True)]


@contextmanager
def _stopped(pids: Sequence[int]) -> Iterator[None]:
    """Stop processes for as long as the block runs."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _memory(pid: int) -> int:
    """Return the resident memory of a process now, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _peak(on_api: OnApi) -> float:
    return max(peak_memory(pid) for pid in on_api.pids()["on-api"]) / MIB
