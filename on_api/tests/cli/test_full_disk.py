"""A disk that is really full: 507, nothing recorded, deletes work, and all is well after space is
freed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from on_api.tests.testing.deadline import until
from on_api.tests.testing.processes import Home
from on_api.tests.testing.small_disk import small_disk

MIB = 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MiB."""
    with small_disk(tmp_path / "disk", 96) as folder:
        yield folder


def put(client: httpx.Client, size: int) -> httpx.Response:
    """Upload fresh bytes."""
    return client.put("/v1/files?name=x", content=os.urandom(size))


@pytest.mark.parametrize("min_free", [0, 20 * MIB])
def test_full_and_freed(disk: Path, min_free: int) -> None:
    """With `min_free` it stops before the disk is full; without, the node's own error becomes
    507."""
    home = Home(disk / "home", extra={"ON_API_NODE__MIN_FREE": str(min_free)})
    home.path.mkdir(mode=0o700)
    key = home.init()
    with home.serving(), home.client(key) as client:
        kept = put(client, MIB)
        assert kept.status_code == 201
        filler = disk / "filler"
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        with filler.open("wb") as file:
            file.write(bytes(free - min_free - 2 * MIB))
        until(lambda: refusal(client), "an upload is refused for want of room")
        before = client.get("/v1/users/me/usage").json(), client.get("/v1/files").json()
        refused = put(client, 8 * MIB)
        assert refused.status_code == 507
        assert refused.json()["error"]["reason"] == "INSUFFICIENT_STORAGE"
        after = client.get("/v1/users/me/usage").json(), client.get("/v1/files").json()
        assert after == before
        content = client.get(f"/v1/files/{kept.json()['id']}/content")
        assert content.status_code == 200
        assert client.delete(f"/v1/files/{kept.json()['id']}").status_code == 204
        filler.unlink()
        until(lambda: put(client, 8 * MIB).status_code == 201, "uploads work again", 60)


def refusal(client: httpx.Client) -> httpx.Response | None:
    """An upload's refusal; a look at the disk is trusted for two seconds, so the first may not be
    one."""
    answer = put(client, 8 * MIB)
    return None if answer.status_code == 201 else answer
