"""The installed service from an empty folder, without a checkout, git or Go: what README promises
of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from on_api.core.models.revisions import PROJECT
from on_api.tests.packaging.conftest import Installed
from on_api.tests.testing.deadline import until
from on_api.tests.testing.plain_http import NO_TLS
from on_api.tests.testing.programs import needs, program

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(1200)]

README = (PROJECT / "README.md").read_text(encoding="utf-8")
PUBLIC, PRIVATE = b"for everybody", b"for its owner and whoever has the link"


def section(heading: str) -> str:
    """A part of README."""
    found = re.search(rf"(?ms)^## {heading}\n(.*?)(?=^## )", README)
    assert found is not None
    return found[1]


def key_of(installed: Installed) -> str:
    """The administrator's key, as the first start has kept it."""
    return (installed.path / "admin.key").read_text().strip()


@needs("bash", "curl")
def test_readmes_first_upload(installed: Installed) -> None:
    """`on-api serve` alone is the whole service; then README's commands, as they stand there but
    for the ports."""
    assert "on-api serve" in section("Install")
    kept_in = "KEY=$(cat ~/.local/share/on-api/admin.key)"
    assert kept_in in section("Install")
    commands = "\n".join(re.findall(r"(?s)```sh\n(.*?)```", section("The first upload")))
    for written, here in {
        "KEY=$(cat .on-api/admin.key)": kept_in,
        "http://localhost:8000": installed.url,
        "http://localhost:8080": f"http://localhost:{installed.gateway_port}",
    }.items():
        assert written in commands
        commands = commands.replace(written, here)
    with installed.serving():
        assert f"the home is {installed.path} (your data folder" in installed.log()
        assert list(installed.folder.iterdir()) == []
        done = subprocess.run(
            [program("bash"), "-euo", "pipefail", "-c", commands],
            env={"HOME": str(installed.user), "PATH": os.environ["PATH"]},
            cwd=installed.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        uploaded = (installed.folder / "hello.txt").read_text()
        assert done.stdout.count(uploaded) == 3
        with installed.client(key_of(installed)) as client:
            assert client.get("/v1/files").json()["count"] == 0


def test_everything_is_there_after_a_restart(installed: Installed) -> None:
    """A public and a private file, a share, a pin, Swagger UI; only the first start makes a key."""
    with installed.serving():
        key = key_of(installed)
        with installed.client(key) as client:
            public = client.put("/v1/files?name=public.txt", content=PUBLIC).json()
            private = client.put("/v1/files?name=p.txt&visibility=private", content=PRIVATE).json()
            share = client.post("/v1/shares", json={"file_id": private["id"]}).json()
            pin = client.post("/v1/pins", json={"cid": public["cid"], "name": "kept"}).json()
            assert client.delete(f"/v1/files/{public['id']}").status_code == 204
            for path in ("/docs", "/v1/openapi.json"):
                assert client.get(path).status_code == 200
    assert not installed.kubo_runs()
    with installed.serving(), installed.client(key) as client:
        assert key_of(installed) == key
        assert client.get(f"/v1/files/{private['id']}/content").content == PRIVATE
        assert client.get(f"/v1/pins/{pin['requestid']}").json()["status"] == "pinned"
        for url, body in (
            (f"{installed.url}/ipfs/{public['cid']}", PUBLIC),
            (share["url"], PRIVATE),
        ):
            seen = httpx.get(url, verify=NO_TLS, trust_env=False)
            assert (seen.status_code, seen.content) == (200, body)
        assert (
            PRIVATE
            not in httpx.get(
                f"{installed.url}/ipfs/{private['cid']}", verify=NO_TLS, trust_env=False
            ).content
        )
        told = installed.run("users", "list")
        assert "admin" in told.stdout
        assert f"the home is {installed.path}" in told.stderr
    assert list(installed.folder.iterdir()) == []


def test_a_home_here_or_named_comes_first(installed: Installed) -> None:
    """`./.on-api`, then ON_API_HOME before it, each said; `$XDG_DATA_HOME` moves the default."""
    elsewhere = installed.user / "data"
    installed.extra = {"XDG_DATA_HOME": str(elsewhere)}
    by_default = installed.run("init")
    assert f"the home is {elsewhere / 'on-api'} (your data folder" in by_default.stderr
    (installed.folder / ".on-api").mkdir()
    here = installed.run("init")
    assert f"the home is {installed.folder / '.on-api'} (the folder .on-api here)" in here.stderr
    installed.extra = {"ON_API_HOME": str(installed.user / "named")}
    named = installed.run("init")
    assert f"the home is {installed.user / 'named'} (ON_API_HOME)" in named.stderr
    for home in (elsewhere / "on-api", installed.folder / ".on-api", installed.user / "named"):
        assert (home / "admin.key").is_file()
    assert not installed.path.exists()


def test_without_ipfs_and_without_go(installed: Installed) -> None:
    """One sentence with the three ways; the next start, with one of them, is clean."""
    (installed.user / "bin" / "ipfs").rename(installed.user / "kubo")
    installed.extra = {"HTTPS_PROXY": "http://127.0.0.1:9"}  # no way to the official release
    done = installed.run("serve")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    for way in ("on PATH", "ON_API_NODE__BINARY", "install Go", "https://dist.ipfs.tech"):
        assert way in last
    installed.extra = {"ON_API_NODE__BINARY": str(installed.user / "kubo")}
    with installed.serving():
        assert installed.ready()


def test_uvicorn_with_the_node_beside_it(installed: Installed) -> None:
    """As docs/operations.md has it: `on-api init`, `on-api node run`, and uvicorn."""
    assert installed.run("init").returncode == 0
    programs = installed.program.parent
    address = ("--host", "127.0.0.1", "--port", str(installed.port))
    with (
        running(installed, [str(programs / "on-api"), "node", "run"], "node.log"),
        running(
            installed,
            [str(programs / "uvicorn"), "--factory", "on_api.main:create_app", *address],
            "uvicorn.log",
        ),
        installed.client(key_of(installed)) as client,
    ):
        until(installed.ready, "uvicorn serves and the node is up", 90)
        file = client.put("/v1/files?name=x", content=PUBLIC).json()
        assert client.get(f"/v1/files/{file['id']}/content").content == PUBLIC


@contextmanager
def running(installed: Installed, command: list[str], log: str) -> Iterator[None]:
    """Run a program as this person until the block ends."""
    with (installed.user / log).open("wb") as output:
        process = subprocess.Popen(
            command,
            env=installed.environment,
            cwd=installed.folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
