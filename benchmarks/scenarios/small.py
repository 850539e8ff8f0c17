"""Many uploads at once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import httpx

from benchmarks.figures import Figure, in_pairs
from benchmarks.load import WrongAnswerError, measure
from benchmarks.scenarios.registry import Variant, request_rate, scenario
from benchmarks.stage import MIB, POSTGRESQL, SMALL, SQLITE, OnApi, Stage
from on_api.tests.testing.processes import peak_memory

_SAMPLE = 5


@scenario(Variant(SQLITE), Variant(POSTGRESQL), Variant(POSTGRESQL, 2))
def put_small(stage: Stage) -> list[Figure]:
    """Measure many small files at once: key and quota checked, row committed, pinned."""
    many = stage.sizes.uploads
    with stage.on_api() as on_api:
        pairs = in_pairs(
            request_rate(replace(on_api.put(SMALL), count=many, concurrency=32), on_api.pids),
            request_rate(
                replace(on_api.raw_add(SMALL), count=many, concurrency=32), on_api.node_pids
            ),
            stage.sizes.pairs,
        )
        on_api.require_recorded((stage.sizes.pairs + 1) * many)
        _require_stored(on_api)
    return [Figure.of("PUT 8 KiB, 32 at once", "files/s", pairs, "Kubo add", at_least=1.0)]


@scenario(Variant(SQLITE))
def at_once(stage: Stage) -> list[Figure]:
    """Measure very many uploads of 1 MiB at the same moment, of every kind: each is stored, or
    refused with 503."""
    many = stage.sizes.at_once
    figures = []
    for kind, make in (
        ("PUT", OnApi.put),
        ("multipart", OnApi.post),
        ("private", partial(OnApi.put, visibility="private")),
    ):
        with stage.on_api() as on_api:
            job = replace(make(on_api, MIB), count=many, concurrency=many, refused=503)
            load = measure(job.fresh())
            on_api.require_recorded(many - load.refused)
            _require_stored(on_api)
            peak = max(peak_memory(pid) for pid in on_api.pids()["on-api"]) / MIB
        work = f"{many} of 1 MiB at once, {kind}"
        figures += [
            Figure(work, "files/s", [(many - load.refused) / load.seconds]),
            Figure(f"{work}: peak RSS", "MiB", [peak], at_most=200),
            Figure(f"{work}: slowest hundredth", "ms", [load.p99_ms]),
            Figure(f"{work}: refused", "files", [load.refused]),
        ]
    return figures


def _require_stored(on_api: OnApi) -> None:
    """Raise `WrongAnswerError` unless the node has pinned a sample of the recorded files."""
    with on_api.home.client(on_api.key) as client:
        files = client.get("/v1/files", params={"limit": _SAMPLE}).raise_for_status().json()
    for file in files["items"]:
        job = httpx.post(
            f"http://127.0.0.1:{on_api.home.rpc_port}/api/v0/pin/ls",
            params={"type": "all", "arg": file["cid"]},  # by its own pin, or its bundle's
            headers=on_api.rpc_headers,
            trust_env=False,
        )
        if file["cid"] not in job.text:
            raise WrongAnswerError(f"{file['cid']} is not pinned: {job.text}")
