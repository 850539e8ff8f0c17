"""The scenarios: each a function from a stage to its figures, registered under its name. A new one
is a few lines here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import httpx
import typer

from benchmarks.figures import Figure, in_pairs
from benchmarks.load import Job, get_rate, measure
from benchmarks.seeding import seed
from benchmarks.stage import (
    POSTGRESQL,
    SQLITE,
    OnApi,
    Stage,
    accelerated,
    bare_fastapi,
    behind,
)
from on_api.core.crypto import aead
from on_api.tests.cli.processes import peak_memory
from on_api.tests.nginx import ACCEL_SECRET, NGINX

MIB = 2**20
SMALL = 8 * 1024
UNKNOWN_CID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"

Scenario = Callable[[Stage], list[Figure]]

SCENARIOS: dict[str, tuple[Scenario, tuple[str, ...]]] = {}
"""Each with the databases on which it runs when none is asked for."""


def scenario(*databases: str) -> Callable[[Scenario], Scenario]:
    """Register a scenario under its function's name."""

    def register(function: Scenario) -> Scenario:
        SCENARIOS[function.__name__] = (function, databases)
        return function

    return register


@scenario(SQLITE)
def upload(stage: Stage) -> list[Figure]:
    """A large file, as the raw body and as a form."""
    figures = []
    for name, make in (("PUT", OnApi.put), ("multipart", OnApi.post)):
        with stage.on_api() as on_api:
            ours, theirs = in_pairs(
                partial(_upload_rate, make(on_api, stage.sizes.large)),
                partial(_upload_rate, on_api.raw_add(stage.sizes.large)),
                stage.sizes.pairs,
            )
        work = f"upload {stage.sizes.large // MIB} MiB, {name}"
        figures.append(Figure(work, "MiB/s", ours, theirs, "Kubo add", at_least=0.90))
    return figures


@scenario(SQLITE)
def download(stage: Stage) -> list[Figure]:
    """A large file, back from on-api and from Kubo's gateway."""
    with stage.on_api() as on_api:
        measure(on_api.put(stage.sizes.large))
        with on_api.home.client(on_api.key) as client:
            file = client.get("/v1/files").raise_for_status().json()["items"][0]
        content = f"{on_api.home.url}/v1/files/{file['id']}/content"
        ours, theirs = in_pairs(
            partial(_download_rate, Job(content, headers=on_api.headers)),
            partial(_download_rate, Job(f"{on_api.gateway}/ipfs/{file['cid']}")),
            stage.sizes.pairs,
        )
    work = f"download {stage.sizes.large // MIB} MiB"
    return [Figure(work, "MiB/s", ours, theirs, "Kubo gateway", at_least=0.70)]


@scenario(SQLITE)
def gateway(stage: Stage) -> list[Figure]:
    """A small file out of memory and past it, and a large one, by `/ipfs`: metered, its root looked
    up; Kubo's own gateway beside it."""
    figures = []
    load = {"count": stage.sizes.gets, "connections": 16}
    for work, memory, goal in (
        ("GET 8 KiB, hot", {}, 3.0),
        ("GET 8 KiB, not cached", {"ON_API_GATEWAY__CACHE_BYTES": "0"}, 0.5),
    ):
        with stage.on_api(**memory) as on_api:
            path = f"/ipfs/{on_api.upload(os.urandom(SMALL))['cid']}"
            ours, theirs = in_pairs(
                partial(get_rate, on_api.home.url + path, {}, **load),
                partial(get_rate, on_api.gateway + path, {}, **load),
                stage.sizes.pairs,
            )
        figures.append(Figure(work, "req/s", ours, theirs, "Kubo gateway", at_least=goal))
    with stage.on_api() as on_api:
        measure(on_api.put(stage.sizes.large))
        with on_api.home.client(on_api.key) as client:
            file = client.get("/v1/files").raise_for_status().json()["items"][0]
        path = f"/ipfs/{file['cid']}"
        ours, theirs = in_pairs(
            partial(_download_rate, Job(on_api.home.url + path)),
            partial(_download_rate, Job(on_api.gateway + path)),
            stage.sizes.pairs,
        )
    work = f"download {stage.sizes.large // MIB} MiB by /ipfs"
    return [*figures, Figure(work, "MiB/s", ours, theirs, "Kubo gateway", at_least=0.70)]


@scenario(SQLITE)
def behind_nginx(stage: Stage) -> list[Figure]:
    """A large file by `/ipfs` through nginx, which fetches it from the node by itself: charged,
    and not through Python."""
    if NGINX is None:
        typer.echo("behind_nginx: skipped, needs nginx (apt-get install nginx)", err=True)
        return []
    with stage.on_api(ON_API_GATEWAY__ACCEL_SECRET=ACCEL_SECRET) as on_api:
        measure(on_api.put(stage.sizes.large))
        with on_api.home.client(on_api.key) as client:
            file = client.get("/v1/files").raise_for_status().json()["items"][0]
        path = f"/ipfs/{file['cid']}"
        with behind(on_api) as front:
            ours, theirs = in_pairs(
                partial(_download_rate, Job(front + path)),
                partial(_download_rate, Job(on_api.gateway + path)),
                stage.sizes.pairs,
            )
            if not accelerated(on_api):
                raise AssertionError("nginx has fetched nothing by itself")
    work = f"download {stage.sizes.large // MIB} MiB by /ipfs, behind nginx"
    return [Figure(work, "MiB/s", ours, theirs, "Kubo gateway", at_least=0.90)]


@scenario(SQLITE)
def private(stage: Stage) -> list[Figure]:
    """A large private file beside a public one, up and down, and a range from its middle."""
    large = stage.sizes.large
    with stage.on_api() as on_api:
        up = in_pairs(
            partial(_upload_rate, on_api.put(large, "private")),
            partial(_upload_rate, on_api.put(large)),
            stage.sizes.pairs,
        )
        down = in_pairs(
            partial(_download_rate, on_api.content("private")),
            partial(_download_rate, on_api.content("public")),
            stage.sizes.pairs,
        )
        part = f"bytes={large // 2}-{large // 2 + MIB - 1}"
        ranges = [
            measure(replace(on_api.content(kind, Range=part), count=stage.sizes.pages)).median_ms
            for kind in ("private", "public")
        ]
    library = aead.describe().split()[0]
    size = f"{large // MIB} MiB"
    return [
        Figure(f"upload {size}, private ({library})", "MiB/s", *up, "public", at_least=0.70),
        Figure(f"download {size}, private ({library})", "MiB/s", *down, "public", at_least=0.30),
        Figure("1 MiB of its middle", "ms", ranges[:1], ranges[1:], "public"),
    ]


@scenario(SQLITE, POSTGRESQL)
def put_small(stage: Stage) -> list[Figure]:
    """Many small files at once: key and quota checked, row committed, pinned."""

    def files_per_second(job: Job) -> float:
        return measure(replace(job, count=stage.sizes.uploads, concurrency=32)).per_second

    with stage.on_api() as on_api:
        ours, theirs = in_pairs(
            partial(files_per_second, on_api.put(SMALL)),
            partial(files_per_second, on_api.raw_add(SMALL)),
            stage.sizes.pairs,
        )
    return [Figure("PUT 8 KiB, 32 at once", "files/s", ours, theirs, "Kubo add", at_least=1.0)]


@scenario(SQLITE, POSTGRESQL)
def pins(stage: Stage) -> list[Figure]:
    """Pin requests accepted, of content that is not here; and pages of the list, last beside
    first."""
    with stage.on_api(ON_API_WORKER__EMBEDDED="false") as on_api:
        job = replace(on_api.pin(UNKNOWN_CID), count=stage.sizes.uploads * 4, concurrency=16)
        accepted = [measure(job).per_second for _ in range(stage.sizes.pairs)]
        with on_api.home.client(on_api.key) as client:
            page: dict[str, str | int] = {"status": "queued", "limit": 10}
            oldest = f"{on_api.home.url}/v1/pins?status=queued&limit=10&before="
            first = f"{on_api.home.url}/v1/pins?status=queued&limit=10"
            count = client.get("/v1/pins", params=page).raise_for_status().json()["count"]
            oldest += _time_of_the_oldest(client, page)

        def page_time(url: str) -> float:
            return measure(Job(url, headers=on_api.headers, count=stage.sizes.pages)).median_ms

        last, newest = in_pairs(partial(page_time, oldest), partial(page_time, first), 5)
    return [
        Figure("POST /v1/pins, 16 at once", "pins/s", accepted, at_least=500),
        Figure(f"last page of {count:,} pins", "ms", last, newest, "first page", at_most=1.5),
    ]


@scenario(SQLITE, POSTGRESQL)
def metadata(stage: Stage) -> list[Figure]:
    """One file's metadata, with a key."""
    with stage.on_api() as on_api, bare_fastapi() as bare:
        path = f"/v1/files/{on_api.upload(os.urandom(SMALL))['id']}"
        load = {"count": stage.sizes.gets, "connections": 16}
        ours, theirs = in_pairs(
            lambda: get_rate(on_api.home.url + path, on_api.headers, **load),
            lambda: get_rate(bare + path, {}, **load),
            stage.sizes.pairs,
        )
    return [Figure("GET metadata", "req/s", ours, theirs, "bare FastAPI", at_least=0.5)]


@scenario(POSTGRESQL)
def list_pages(stage: Stage) -> list[Figure]:
    """The last page of a long list beside its first; fifty rows each."""
    if stage.postgres is None:
        return []  # the rows are made by PostgreSQL's own SQL
    with stage.on_api() as on_api:
        seed(on_api.home.extra["ON_API_DATABASE_URL"], stage.sizes)
        first = f"{on_api.home.url}/v2/files"
        last = _last_page(on_api, first)

        def page_time(url: str) -> float:
            return measure(Job(url, headers=on_api.headers, count=stage.sizes.pages)).median_ms

        ours, theirs = in_pairs(partial(page_time, last), partial(page_time, first), 5)
    work = f"last page, {stage.sizes.files:,} files"
    return [Figure(work, "ms", ours, theirs, "first page", at_most=1.5)]


@scenario(SQLITE)
def memory(stage: Stage) -> list[Figure]:
    """The most that the serving process ever holds while a huge file goes up and comes down."""
    with stage.on_api() as on_api:
        before = peak_memory(on_api.pid) / MIB
        measure(on_api.put(stage.sizes.huge))
        with on_api.home.client(on_api.key) as client:
            file = client.get("/v1/files").raise_for_status().json()["items"][0]
        measure(Job(f"{on_api.home.url}/v1/files/{file['id']}/content", headers=on_api.headers))
        after = peak_memory(on_api.pid) / MIB
    work = f"peak RSS, {stage.sizes.huge // MIB} MiB up and down"
    return [
        Figure("peak RSS after the start", "MiB", [before], at_most=200),
        Figure(work, "MiB", [after], at_most=200),
    ]


@scenario(SQLITE)
def memory_many(stage: Stage) -> list[Figure]:
    """The most that the serving process ever holds while very many send a file at once. Every one
    of them is stored, else there is no figure."""
    at_once = stage.sizes.many
    figures = []
    for name, make in (
        ("PUT", OnApi.put),
        ("multipart", OnApi.post),
        ("private", partial(OnApi.put, visibility="private")),
    ):
        with stage.on_api() as on_api:
            measure(replace(make(on_api, MIB), count=at_once, concurrency=at_once))
            peak = peak_memory(on_api.pid) / MIB
        work = f"peak RSS, {at_once} of 1 MiB at once, {name}"
        figures.append(Figure(work, "MiB", [peak], at_most=512))
    return figures


@scenario(SQLITE)
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


def _upload_rate(job: Job) -> float:
    return (job.body_bytes or 0) / measure(job).seconds / MIB


def _download_rate(job: Job) -> float:
    load = measure(job)
    return load.bytes_in / load.seconds / MIB


def _time_of_the_oldest(client: httpx.Client, page: dict[str, str | int]) -> str:
    """The moment behind the last ten, as clients walk through the list."""
    page = {**page, "limit": 1000}
    while True:
        answer = client.get("/v1/pins", params=page).raise_for_status().json()
        if answer["count"] <= len(answer["results"]):
            return str(answer["results"][-11]["created"])
        page["before"] = answer["results"][-1]["created"]


def _last_page(on_api: OnApi, first: str) -> str:
    """The URL of the last full page: behind a cursor that a walk through the whole list gave."""
    cursors: list[str] = []
    with on_api.home.client(on_api.key) as client:
        query: dict[str, str | int] = {"limit": 50}
        while True:
            page = client.get(first, params=query).raise_for_status().json()
            if page["next_cursor"] is None:
                return f"{first}?cursor={cursors[-1]}"
            cursors.append(page["next_cursor"])
            query = {"limit": 50, "cursor": cursors[-1]}
