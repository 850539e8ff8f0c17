"""Registry of the scenarios, and the measurements that most of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.figures import Figure, Pids, Reading, Side
from benchmarks.load import Job, measure
from benchmarks.stage import MIB, Stage

Scenario = Callable[[Stage], list[Figure]]


@dataclass(frozen=True)
class Variant:
    """A database, and the number of serving processes."""

    database: str
    processes: int = 1


SCENARIOS: dict[str, tuple[Scenario, tuple[Variant, ...]]] = {}
"""Scenarios by name, each with the variants that it runs on by default."""


def scenario(*variants: Variant) -> Callable[[Scenario], Scenario]:
    """Register a scenario under its function's name."""

    def register(function: Scenario) -> Scenario:
        SCENARIOS[function.__name__] = (function, variants)
        return function

    return register


def upload_rate(job: Job, pids: Pids) -> Side:
    """Measure uploads one after the other, each of fresh bytes, in MiB/s."""

    def read() -> Reading:
        return Reading((job.body_bytes or 0) / measure(job.fresh()).seconds / MIB)

    return Side(read, pids)


def download_rate(job: Job, pids: Pids) -> Side:
    """Measure a download, in MiB/s."""

    def read() -> Reading:
        load = measure(job)
        return Reading(load.bytes_in / load.seconds / MIB)

    return Side(read, pids)


def request_rate(job: Job, pids: Pids) -> Side:
    """Measure requests per second, each body of fresh bytes."""
    return Side(lambda: Reading(measure(job.fresh()).per_second, job.count), pids)


def median_time(job: Job, pids: Pids) -> Side:
    """Measure the median duration of many requests, in milliseconds."""
    return Side(lambda: Reading(measure(job).median_ms, job.count), pids)


def get_rate(stage: Stage, url: str, headers: dict[str, str], body: bytes, pids: Pids) -> Side:
    """Measure GETs per second, over 16 connections."""
    return Side(lambda: Reading(*stage.gets(url, headers, body)), pids)
