"""Large files through a real process: flat memory, the CID that `ipfs add` gives, the same bytes
back."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from on_api.core.ipfs.daemon.binary import kubo_binary
from on_api.core.setting_groups import NodeSettings
from on_api.tests.testing.processes import Home, peak_memory

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="reads a process's peak memory from /proc, which only Linux has"
)

MIB = 1024 * 1024
PEAK_LIMIT = 200 * MIB


def random_file(path: Path, size: int) -> str:
    """Make a file; returns its sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size // MIB):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
        rest = os.urandom(size % MIB)
        digest.update(rest)
        file.write(rest)
    return digest.hexdigest()


def blocks(path: Path) -> Iterator[bytes]:
    """The file, a mebibyte at a time."""
    with path.open("rb") as file:
        while block := file.read(MIB):
            yield block


def ipfs_add(path: Path, repo: Path) -> str:
    """The CID by Kubo's own command line, in a repo of its own."""
    binary = kubo_binary(NodeSettings(), print)
    environment = {**os.environ, "IPFS_PATH": str(repo)}
    if not repo.exists():
        subprocess.run(
            [binary, "init", "--profile=test"], env=environment, check=True, capture_output=True
        )
    options = ["--cid-version=1", "--raw-leaves", "--chunker=size-1048576", "--max-file-links=1024"]
    done = subprocess.run(
        [binary, "add", "--only-hash", "--quieter", *options, path],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(200 * MIB, id="200MiB"),
        pytest.param(2048 * MIB + 3, id="2GiB", marks=pytest.mark.soak),
    ],
)
def test_a_large_file_up_and_down_in_flat_memory(tmp_path: Path, size: int) -> None:
    """PUT, and multipart for the smaller one; the server stays under 200 MiB whatever the size."""
    (tmp_path / "home").mkdir(mode=0o700)
    home = Home(tmp_path / "home")
    key = home.init()
    path = tmp_path / "large.bin"
    sha256 = random_file(path, size)
    with home.serving() as process, home.client(key) as client:
        name = '日本語 "x".bin'
        answer = client.put("/v1/files", params={"name": name}, content=blocks(path), timeout=600)
        assert answer.status_code == 201, answer.text
        file = answer.json()
        assert (file["name"], file["size"], file["sha256"]) == (name, size, sha256)
        assert file["cid"] == ipfs_add(path, tmp_path / "repo")
        if size < 1024 * MIB:
            with path.open("rb") as source:
                again = client.post("/v1/files", files={"file": (name, source)}, timeout=600)
            assert again.json()["cid"] == file["cid"]
        received = hashlib.sha256()
        with client.stream("GET", f"/v1/files/{file['id']}/content") as content:
            assert content.headers["content-length"] == str(size)
            for chunk in content.iter_raw(MIB):
                received.update(chunk)
        assert received.hexdigest() == sha256
        assert peak_memory(process.pid) < PEAK_LIMIT


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1])
def test_the_cid_is_that_of_ipfs_add(tmp_path: Path, size: int) -> None:
    """Our own reckoning of CIDs, which the other tests compare with, is Kubo's."""
    from on_api.core.ipfs.formats.unixfs import build_file

    path = tmp_path / "file"
    random_file(path, size)
    assert build_file(path.read_bytes()).cid == ipfs_add(path, tmp_path / "repo")
