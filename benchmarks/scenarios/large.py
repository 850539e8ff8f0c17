"""Large files: uploaded and downloaded, public and private."""

from __future__ import annotations

from dataclasses import replace

import typer

from benchmarks.figures import Figure, in_pairs
from benchmarks.scenarios.registry import (
    Variant,
    download_rate,
    median_time,
    scenario,
    upload_rate,
)
from benchmarks.stage import MIB, SQLITE, OnApi, Stage, accelerated, behind
from on_api.core.crypto import aead
from on_api.tests.testing.nginx import ACCEL_SECRET
from on_api.tests.testing.programs import is_there


@scenario(Variant(SQLITE))
def upload(stage: Stage) -> list[Figure]:
    """Measure the upload of a large file, as a raw body and as a form."""
    figures = []
    for name, make in (("PUT", OnApi.put), ("multipart", OnApi.post)):
        with stage.on_api() as on_api:
            pairs = in_pairs(
                upload_rate(make(on_api, stage.sizes.large), on_api.pids),
                upload_rate(on_api.raw_add(stage.sizes.large), on_api.node_pids),
                stage.sizes.pairs,
            )
            on_api.require_recorded(stage.sizes.pairs + 1)
        work = f"upload {_size(stage)}, {name}"
        figures.append(Figure.of(work, "MiB/s", pairs, "Kubo add", at_least=0.90))
    return figures


@scenario(Variant(SQLITE))
def download(stage: Stage) -> list[Figure]:
    """Measure the download of a large file, from on-api and from Kubo's gateway."""
    with stage.on_api() as on_api:
        file = on_api.upload(stage.sizes.large)
        pairs = in_pairs(
            download_rate(on_api.content(file), on_api.pids),
            download_rate(on_api.by_gateway(on_api.gateway, file), on_api.node_pids),
            stage.sizes.pairs,
        )
    work = f"download {_size(stage)}"
    return [Figure.of(work, "MiB/s", pairs, "Kubo gateway", at_least=0.70)]


@scenario(Variant(SQLITE))
def gateway_large(stage: Stage) -> list[Figure]:
    """Measure the download of a large file by `/ipfs`."""
    with stage.on_api() as on_api:
        file = on_api.upload(stage.sizes.large)
        pairs = in_pairs(
            download_rate(on_api.by_gateway(on_api.home.url, file), on_api.pids),
            download_rate(on_api.by_gateway(on_api.gateway, file), on_api.node_pids),
            stage.sizes.pairs,
        )
    work = f"download {_size(stage)} by /ipfs"
    return [Figure.of(work, "MiB/s", pairs, "Kubo gateway", at_least=0.70)]


@scenario(Variant(SQLITE))
def behind_nginx(stage: Stage) -> list[Figure]:
    """Measure a large file by `/ipfs` through nginx, which fetches it from the node itself: it is
    charged, but does not pass through Python."""
    if not is_there("nginx"):
        typer.echo(
            "behind_nginx: skipped, because nginx is not installed (apt-get install nginx)",
            err=True,
        )
        return []
    with stage.on_api(ON_API_GATEWAY__ACCEL_SECRET=ACCEL_SECRET) as on_api:
        file = on_api.upload(stage.sizes.large)
        with behind(on_api) as front:
            pairs = in_pairs(
                download_rate(on_api.by_gateway(front, file), on_api.pids),
                download_rate(on_api.by_gateway(on_api.gateway, file), on_api.node_pids),
                stage.sizes.pairs,
            )
            if accelerated(on_api) != stage.sizes.pairs + 1:
                raise AssertionError("nginx did not fetch all of them itself")
    work = f"download {_size(stage)} by /ipfs, behind nginx"
    return [Figure.of(work, "MiB/s", pairs, "Kubo gateway", at_least=0.90)]


@scenario(Variant(SQLITE))
def private(stage: Stage) -> list[Figure]:
    """Measure a large private file beside a public one, up and down; and a range from its middle,
    which should cost as much as the same range of a small file."""
    large, pairs = stage.sizes.large, stage.sizes.pairs
    with stage.on_api() as on_api:
        pids = on_api.pids
        up = in_pairs(
            upload_rate(on_api.put(large, "private"), pids),
            upload_rate(on_api.put(large), pids),
            pairs,
        )
        sealed, plain = on_api.upload(large, "private"), on_api.upload(large)
        down = in_pairs(
            download_rate(on_api.content(sealed), pids),
            download_rate(on_api.content(plain), pids),
            pairs,
        )
        short = on_api.upload(4 * MIB, "private")
        parts = [
            replace(on_api.part(file, file.body.size // 2 + 99, MIB), count=stage.sizes.pages)
            for file in (sealed, short, plain)
        ]
        own = in_pairs(median_time(parts[0], pids), median_time(parts[1], pids), pairs)
        public = in_pairs(median_time(parts[0], pids), median_time(parts[2], pids), pairs)
    library = aead.describe().split()[0]
    goal = 0.60 if library == "cryptography" else 0.30
    size, middle = _size(stage), f"1 MiB of the middle of {_size(stage)}, private"
    up_work, down_work = f"upload {size}, private", f"download {size}, private"
    return [
        Figure.of(f"{up_work} ({library})", "MiB/s", up, "public", at_least=0.70),
        Figure.of(f"{down_work} ({library})", "MiB/s", down, "public", at_least=goal),
        # Only its own chunks are decrypted; the node finds them in the DAG for both.
        Figure.of(middle, "ms", public, "public", at_most=1.5),
        Figure.of(f"{middle}, beside a small one", "ms", own, "of 4 MiB"),
    ]


def _size(stage: Stage) -> str:
    large = stage.sizes.large
    return f"{large // 2**30} GiB" if large % 2**30 == 0 else f"{large // MIB} MiB"
