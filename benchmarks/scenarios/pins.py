"""Pins: accepted, carried out, listed."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import urlencode

import httpx

from benchmarks.bodies import Body
from benchmarks.figures import Figure, Reading, Side, alone, in_pairs, processor_ms
from benchmarks.load import Job, measure, new_seed
from benchmarks.scenarios.registry import Variant, median_time, request_rate, scenario
from benchmarks.stage import POSTGRESQL, SMALL, SQLITE, OnApi, Stage
from on_api.core.ipfs.formats.cid import ADD_OPTIONS
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.tests.testing.deadline import until
from on_api.tests.testing.processes import ON_API

UNKNOWN_CID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
_LOOK_SECONDS = 0.05


@scenario(Variant(SQLITE), Variant(POSTGRESQL), Variant(POSTGRESQL, 2))
def pins(stage: Stage) -> list[Figure]:
    """Measure pin requests accepted, for content that is not here; and pages of the list, the last
    beside the first."""
    with stage.on_api(ON_API_WORKER__EMBEDDED="false") as on_api:
        job = replace(on_api.pin(UNKNOWN_CID), count=stage.sizes.uploads * 4, concurrency=16)
        accepted, cost = alone(request_rate(job, on_api.pids), stage.sizes.pairs)
        with on_api.home.client(on_api.key) as client:
            count, oldest = _time_of_the_oldest(client)
        if count != job.count * stage.sizes.pairs:
            raise AssertionError(f"{count} pins are listed")
        page = f"{on_api.home.url}/v1/pins?status=queued&limit=10"
        first = Job(page, headers=on_api.headers, count=stage.sizes.pages, contains='"requestid"')
        last = replace(first, url=f"{page}&before={oldest}")
        pages = in_pairs(
            median_time(last, on_api.pids), median_time(first, on_api.pids), stage.sizes.pairs
        )
    work = "POST /v1/pins, 16 at once"
    return [
        Figure(work, "pins/s", accepted, at_least=500, ours_ms=cost),
        Figure.of(f"last page of {count:,} pins", "ms", pages, "first page", at_most=1.5),
    ]


@scenario(Variant(SQLITE), Variant(POSTGRESQL))
def pinning(stage: Stage) -> list[Figure]:
    """Measure pins carried out by the worker, for content that is on the node unpinned."""
    many, spent = stage.sizes.uploads, list[float]()
    with stage.on_api(ON_API_WORKER__EMBEDDED="false") as on_api:

        def ours() -> Reading:
            cids = _lay_down(on_api, many)
            texts = [json.dumps({"cid": cid}) for cid in cids]
            measure(replace(on_api.pin(""), texts=texts, count=many, concurrency=16))
            seconds, milliseconds = _work(on_api, many)
            spent.append(milliseconds / many)
            return Reading(many / seconds, many)

        def theirs() -> Reading:
            targets = [f"/api/v0/pin/add?arg={cid}" for cid in _lay_down(on_api, many)]
            url = f"http://127.0.0.1:{on_api.home.rpc_port}"
            job = Job(url, "POST", on_api.rpc_headers, targets=targets, body_bytes=0)
            done = measure(replace(job, contains='"Pins"', count=many, concurrency=32))
            return Reading(done.per_second, many)

        pairs = in_pairs(
            # The worker ends with each measurement, and `_work` returns its processor time.
            Side(ours, dict),
            Side(theirs, dict),
            stage.sizes.pairs,
        )
    figure = Figure.of("pinned by the worker", "pins/s", pairs, "Kubo pin/add", at_least=0.8)
    return [replace(figure, ours_ms={"worker": spent[1:]})]


def _lay_down(on_api: OnApi, many: int) -> Sequence[str]:
    """Store fresh blocks on the node, without pins. Return their CIDs."""
    seed = new_seed()
    options = {**ADD_OPTIONS, "pin": "false", "progress": "false"}
    url = f"http://127.0.0.1:{on_api.home.rpc_port}/api/v0/add?{urlencode(options)}"
    job = Job(url, "POST", on_api.rpc_headers, seed=seed, body_bytes=SMALL, form=True)
    measure(replace(job, count=many, concurrency=16, contains='"Hash"'))
    return [build_file(Body(seed, number, SMALL).whole()).cid for number in range(many)]


def _work(on_api: OnApi, many: int) -> tuple[float, float]:
    """Start a worker, and wait until `many` more pins are pinned. Return the seconds, and the
    milliseconds of its processor time."""
    with on_api.home.client(on_api.key) as client:

        def pinned() -> int:
            answer = client.get("/v1/pins", params={"status": "pinned", "limit": 1})
            return int(answer.raise_for_status().json()["count"])

        before = pinned()
        with _worker(on_api) as pid:
            began, spent = time.perf_counter(), processor_ms([pid])
            while pinned() < before + many:
                if time.perf_counter() - began > 600:
                    raise AssertionError(f"only {pinned() - before} of {many} are pinned")
                time.sleep(_LOOK_SECONDS)
            return time.perf_counter() - began, processor_ms([pid]) - spent


@contextmanager
def _worker(on_api: OnApi) -> Iterator[int]:
    log = on_api.home.path / "worker.log"
    rpc = f"http://127.0.0.1:{on_api.home.rpc_port}"
    gateway = {"ON_API_IPFS__GATEWAY_URL": on_api.gateway, "ON_API_IPFS__RPC_URL": rpc}
    auth = {
        "ON_API_IPFS__RPC_AUTH": on_api.rpc_headers["Authorization"].replace("Bearer ", "bearer:")
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [ON_API, "worker"],
            env={**on_api.home.environment, **gateway, **auth},
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: b"the worker is running" in log.read_bytes(), "the worker is running", 60)
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def _time_of_the_oldest(client: httpx.Client) -> tuple[int, str]:
    """Return how many pins there are, and the moment behind the last ten, by walking the list as
    clients do."""
    page: dict[str, str | int] = {"status": "queued", "limit": 1000}
    count = None
    while True:
        answer = client.get("/v1/pins", params=page).raise_for_status().json()
        count = answer["count"] if count is None else count
        if answer["count"] <= len(answer["results"]):
            return count, str(answer["results"][-11]["created"])
        page["before"] = answer["results"][-1]["created"]
