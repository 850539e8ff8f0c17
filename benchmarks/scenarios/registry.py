"""What a scenario is, and what most of them do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.figures import Figure, Pids, Reading, Side
from benchmarks.load import Job, measure
from benchmarks.stage import MIB, Stage

Scenario = Callable[[Stage], list[Figure]]


@dataclass(frozen=True)
class Variant:
    """On which database, and with how many processes that serve."""

    database: str
    processes: int = 1


SCENARIOS: dict[str, tuple[Scenario, tuple[Variant, ...]]] = {}
"""Each with what it runs on when nothing is asked for."""


def scenario(*variants: Variant) -> Callable[[Scenario], Scenario]:
    """Register a scenario under its function's name."""

    def register(function: Scenario) -> Scenario:
        SCENARIOS[function.__name__] = (function, variants)
        return function

    return register


def upload_rate(job: Job, pids: Pids) -> Side:
    """MiB/s of one upload after the other, each of fresh bytes."""

    def read() -> Reading:
        return Reading((job.body_bytes or 0) / measure(job.fresh()).seconds / MIB)

    return Side(read, pids)


def download_rate(job: Job, pids: Pids) -> Side:
    """MiB/s of a download."""

    def read() -> Reading:
        load = measure(job)
        return Reading(load.bytes_in / load.seconds / MIB)

    return Side(read, pids)


def request_rate(job: Job, pids: Pids) -> Side:
    """Requests per second, each body of fresh bytes."""
    return Side(lambda: Reading(measure(job.fresh()).per_second, job.count), pids)


def median_time(job: Job, pids: Pids) -> Side:
    """Milliseconds of one request in the middle of many."""
    return Side(lambda: Reading(measure(job).median_ms, job.count), pids)


def get_rate(stage: Stage, url: str, headers: dict[str, str], body: bytes, pids: Pids) -> Side:
    """GETs per second, over 16 connections."""
    return Side(lambda: Reading(*stage.gets(url, headers, body)), pids)
