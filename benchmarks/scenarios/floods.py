"""Latency of other requests during a flood of logins."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from benchmarks.figures import Figure
from benchmarks.load import Job, measure, new_seed
from benchmarks.scenarios.registry import Variant, scenario
from benchmarks.stage import POSTGRESQL, SMALL, SQLITE, OnApi, Stage

STRANGERS = 300
LOGINS = 5000
"""Logins in each round of the flood; rounds follow each other."""


@scenario(Variant(SQLITE), Variant(POSTGRESQL))
def logins(stage: Stage) -> list[Figure]:
    """Measure other clients' requests while 300 connections from one address guess names and
    passwords."""
    figures = []
    with stage.on_api() as on_api:
        file = on_api.upload(SMALL)
        work = {
            "list": Job(f"{on_api.home.url}/v1/files?limit=1", headers=on_api.headers),
            "PUT 8 KiB": on_api.put(SMALL),
            "content of 8 KiB": on_api.content(file),
            "GET by /ipfs, hot": on_api.by_gateway(on_api.home.url, file),
            "/readyz": Job(f"{on_api.home.url}/readyz"),
        }
        measure(work["GET by /ipfs, hot"])
        with _flood(on_api):
            for name, job in work.items():
                often = replace(job, count=stage.sizes.pages)
                medians = [measure(often.fresh()).median_ms for _ in range(stage.sizes.pairs)]
                figures.append(
                    Figure(f"{name}, {STRANGERS} log in: median", "ms", medians, at_most=250)
                )
    return figures


@contextmanager
def _flood(on_api: OnApi) -> Iterator[None]:
    """Send wrong logins as fast as 300 connections get answers, until the block ends. Raises the
    first error of these requests."""
    failures: list[Exception] = []
    begun, ended = threading.Event(), threading.Event()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}

    def flood() -> None:
        try:
            while not ended.is_set():
                seed = new_seed()
                texts = [f"username={seed}{number:06}&password=guessed" for number in range(LOGINS)]
                job = Job(
                    f"{on_api.home.url}/v1/auth/token", "POST", headers,
                    count=LOGINS, concurrency=STRANGERS, body_bytes=0, texts=texts,
                    status=401, refused=429,
                )  # fmt: skip
                begun.set()
                measure(job)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=flood)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failures:
        raise failures[0]
