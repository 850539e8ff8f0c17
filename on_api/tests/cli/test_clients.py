"""Other people's HTTP clients, as they are by default, whose manners have cost uploads: an offer to
upgrade with a body, and a whole body sent before the answer is read."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from on_api.tests.conftest import Account, Server
from on_api.tests.testing.programs import needs, program

PROGRAMS = Path(__file__).parent / "clients"
SIZES = (0, 11, 5000, 100_000, 300_000, 10_000_000)
MIB = 1024 * 1024

pytestmark = pytest.mark.clients


def said_by(*command: str | Path) -> str:
    """What a program prints."""
    run = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def sizes_of(account: Account) -> list[int]:
    """Of the files that are there."""
    items = account.client.get("/v1/files").raise_for_status().json()["items"]
    return sorted(item["size"] for item in items)


@needs("java", packages="default-jdk-headless")
def test_java_which_offers_http_2(server: Server, alice: Account) -> None:
    """Every request has one answer, its own, and every upload its bytes."""
    java = program("java")
    sizes = list(map(str, SIZES))
    said = said_by(java, PROGRAMS / "Upload.java", server.url, alice.key, *sizes).splitlines()
    statuses = [int(line.split()[0]) for line in said]
    answers = [json.loads(line.partition(" ")[2]) for line in said]
    assert statuses == [201] * (len(SIZES) + 1) + [200]
    assert [answer["size"] for answer in answers[: len(SIZES)]] == list(SIZES)
    assert answers[-1]["count"] == len(SIZES)
    assert sizes_of(alice) == list(SIZES)


@needs("curl")
@pytest.mark.parametrize("size", SIZES[1:])  # of an empty file it never sends the last chunk
def test_curl_which_is_asked_for_http_2(
    server: Server, alice: Account, tmp_path: Path, size: int
) -> None:
    """With a length and without; a second request over the same connection."""
    curl = program("curl")
    (tmp_path / "file").write_bytes(bytes(size))
    put = [curl, "-sS", "--http2", "-H", f"Authorization: Bearer {alice.key}", "-o", "/dev/null"]
    put += ["-w", r"%{http_code}\n", "-T", str(tmp_path / "file")]
    url = f"{server.url}/v1/files?name=é"
    said = said_by(*put, url, "-T", str(tmp_path / "file"), "-o", "/dev/null", url)
    said += said_by(*put, "-H", "Transfer-Encoding: chunked", url)
    assert said.split() == ["201"] * 3
    assert sizes_of(alice) == [size] * 3


@needs("node", packages="nodejs")
@pytest.mark.parametrize("size", [5 * MIB, 20 * MIB])
def test_node_without_keep_alive_sees_why_it_was_refused(server: Server, size: int) -> None:
    """Every time."""
    node = program("node")
    said = said_by(node, PROGRAMS / "refused.mjs", server.url, str(size), "16")
    assert said.split() == ["401"] * 16


@pytest.mark.parametrize("size", [MIB, 5 * MIB, 20 * MIB])
def test_urllib_sees_why_it_was_refused(server: Server, size: int) -> None:
    """Which sends all of a body before it reads, over a connection for each request."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = bytes(size)

    def status() -> int:
        request = urllib.request.Request(  # noqa: S310
            f"{server.url}/v1/files?name=x",
            data=body,
            method="PUT",
            headers={"Authorization": "Bearer nobody"},
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            opener.open(request)
        refused.value.close()
        return refused.value.code

    assert [status() for _ in range(16)] == [401] * 16
