"""Small files and their metadata, read many times."""

from __future__ import annotations

import httpx

from benchmarks.figures import Figure, in_pairs
from benchmarks.scenarios.registry import Variant, get_rate, scenario
from benchmarks.stage import POSTGRESQL, SMALL, SQLITE, Stage, bare_fastapi

_EACH = (Variant(SQLITE), Variant(POSTGRESQL, 2))


@scenario(*_EACH)
def gateway_hot(stage: Stage) -> list[Figure]:
    """Measure a small file from memory, by `/ipfs`: metered, its root looked up."""
    return _gateway(stage, "GET 8 KiB, hot", {}, 3.0)


@scenario(*_EACH)
def gateway_cold(stage: Stage) -> list[Figure]:
    """Measure a small file by `/ipfs` without the memory cache."""
    return _gateway(stage, "GET 8 KiB, not cached", {"ON_API_GATEWAY__CACHE_BYTES": "0"}, 0.5)


@scenario(Variant(SQLITE), Variant(POSTGRESQL), Variant(POSTGRESQL, 2))
def metadata(stage: Stage) -> list[Figure]:
    """Measure one file's metadata, with a key, beside an endpoint that does nothing."""
    with stage.on_api() as on_api, bare_fastapi(stage.processes) as (bare, bare_pids):
        path = f"/v1/files/{on_api.upload(SMALL).id}"
        pairs = in_pairs(
            get_rate(
                stage,
                on_api.home.url + path,
                on_api.headers,
                _body(on_api.home.url + path, on_api.headers),
                on_api.pids,
            ),
            get_rate(stage, bare + path, {}, _body(bare + path, {}), bare_pids),
            stage.sizes.pairs,
        )
    return [Figure.of("GET metadata", "req/s", pairs, "bare FastAPI", at_least=0.5)]


def _gateway(stage: Stage, work: str, settings: dict[str, str], goal: float) -> list[Figure]:
    with stage.on_api(**settings) as on_api:
        file = on_api.upload(SMALL)
        body, path = file.body.whole(), f"/ipfs/{file.cid}"
        pairs = in_pairs(
            get_rate(stage, on_api.home.url + path, {}, body, on_api.pids),
            get_rate(stage, on_api.gateway + path, {}, body, on_api.node_pids),
            stage.sizes.pairs,
        )
    return [Figure.of(work, "req/s", pairs, "Kubo gateway", at_least=goal)]


def _body(url: str, headers: dict[str, str]) -> bytes:
    return httpx.get(url, headers=headers, trust_env=False).raise_for_status().content
