"""`on-api init` and `serve` as an operator meets them: the good start, each bad one, and sudden
ends."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from on_api.tests.conftest import Kubo
from on_api.tests.testing.deadline import until
from on_api.tests.testing.plain_http import NO_TLS
from on_api.tests.testing.processes import Home, beside

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="finds the node's process by /proc, which only Linux has"
)

MIB = 1024 * 1024


def slow_body(started: threading.Event, go_on: threading.Event) -> Iterator[bytes]:
    """3 MiB, then nothing until told, then more."""
    for _ in range(3):
        yield os.urandom(MIB)
    started.set()
    go_on.wait(60)
    for _ in range(3):
        yield os.urandom(MIB)


def upload_slowly(
    home: Home, key: str, started: threading.Event, go_on: threading.Event, results: list[object]
) -> threading.Thread:
    """An upload in a thread; its status, or the error that the client saw, lands in `results`."""

    def run() -> None:
        with home.client(key) as client:
            try:
                body = slow_body(started, go_on)
                answer = client.put("/v1/files?name=slow", content=body)
                results.append(answer.status_code)
            except httpx.TransportError as error:
                results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_from_nothing_to_the_first_file_and_a_clean_end(home: Home) -> None:
    """init, serve, upload, the same bytes on both gateways; Ctrl-C ends the node too."""
    home.template = None
    key = home.init()
    assert stat.S_IMODE((home.path / "admin.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((home.path / "secret.key").stat().st_mode) == 0o600
    again = home.run("init")
    assert (again.returncode, again.stdout) == (0, "")
    assert (home.path / "admin.key").read_text().strip() == key
    data = os.urandom(2 * MIB + 5)
    with home.serving() as process, home.client(key) as client:
        file = client.put("/v1/files?name=x", content=data).json()
        assert file["gateway_url"] == f"http://localhost:{home.port}/ipfs/{file['cid']}"
        for url in (
            f"{home.url}/ipfs/{file['cid']}",
            f"http://localhost:{home.gateway_port}/ipfs/{file['cid']}",
        ):
            seen = httpx.get(url, verify=NO_TLS, trust_env=False, follow_redirects=False)
            assert (seen.status_code, seen.content) == (200, data)
        assert client.get("/v1/users/me").json()["username"] == "admin"
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert not home.kubo_runs()
    with home.serving(), home.client(key) as client:
        assert client.get(f"/v1/files/{file['id']}/content").content == data
    assert key not in home.log()


def test_kill_9_in_mid_upload_then_a_clean_start(home: Home) -> None:
    """No record of the cut upload; Kubo doesn't outlive us for long; everything before is there."""
    key = home.init()
    started, go_on, results = threading.Event(), threading.Event(), list[object]()
    with home.serving() as process, home.client(key) as client:
        kept = client.put("/v1/files?name=kept", content=b"kept").json()
        thread = upload_slowly(home, key, started, go_on, results)
        assert started.wait(30)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        go_on.set()
        thread.join(60)
    assert isinstance(results[0], httpx.TransportError)
    with home.serving(), home.client(key) as client:
        listed = client.get("/v1/files").json()
        assert [item["id"] for item in listed["items"]] == [kept["id"]]
        assert client.get(f"/v1/files/{kept['id']}/content").content == b"kept"
        assert client.get("/v1/users/me/usage").json()["storage"]["bytes"] == 4
        assert client.put("/v1/files?name=new", content=b"new").status_code == 201


def test_kubo_killed_in_mid_upload(home: Home) -> None:
    """The upload fails with a 5xx that says so, nothing is recorded, the node comes back by
    itself."""
    key = home.init()
    started, go_on, results = threading.Event(), threading.Event(), list[object]()
    with home.serving(), home.client(key) as client:
        thread = upload_slowly(home, key, started, go_on, results)
        assert started.wait(30)
        killed = home.kubo_pid()
        os.kill(killed, signal.SIGKILL)
        go_on.set()
        thread.join(60)
        assert results[0] in (502, 503)
        assert client.get("/v1/files").json()["count"] == 0
        until(lambda: home.kubo_pids() - {killed}, "there is another one", 60)
        until(home.ready, "the node is back", 60)
        data = os.urandom(3 * MIB)

        def stored() -> httpx.Response | None:
            # `/readyz` tells what it saw up to a second ago.
            answer = client.put("/v1/files?name=after", content=data)
            return answer if answer.status_code == 201 else None

        file = until(stored, "it is used again", 60).json()
        assert client.get(f"/v1/files/{file['id']}/content").content == data


def test_a_hung_node_harms_nobody_else(home: Home) -> None:
    """Uploads and downloads end with 504 in bounded time; everything else answers meanwhile; then
    all is well."""
    home.extra = {
        "ON_API_IPFS__STALL_TIMEOUT": "2",
        "ON_API_IPFS__FINISH_TIMEOUT": "2",
        "ON_API_IPFS__CONTROL_TIMEOUT": "1",
    }
    key = home.init()
    with home.serving(), home.client(key) as client:
        data = os.urandom(4 * MIB)
        kept = client.put("/v1/files?name=kept", content=data).json()
        kubo = home.kubo_pid()
        os.kill(kubo, signal.SIGSTOP)
        try:

            def use(number: int) -> int:
                with home.client(key) as own:
                    if number % 2:
                        return own.put(f"/v1/files?name={number}", content=data).status_code
                    return own.get(f"/v1/files/{kept['id']}/content").status_code

            with ThreadPoolExecutor(20) as threads:
                answers = [threads.submit(use, number) for number in range(20)]
                while not all(answer.done() for answer in answers):
                    assert client.get("/v1/files").json()["count"] == 1
                    assert client.get("/healthz").status_code == 200
            assert {answer.result() for answer in answers} == {504}
            assert client.get("/readyz").status_code == 503
        finally:
            os.kill(kubo, signal.SIGCONT)
        until(home.ready, "the node answers again", 30)
        assert client.get(f"/v1/files/{kept['id']}/content").content == data
        assert client.put("/v1/files?name=after", content=data).status_code == 201


def test_a_killed_on_api_leaves_no_kubo_in_the_way(home: Home) -> None:
    """Its node ends with it, or is ended by the next start."""
    home.init()
    with home.serving() as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with home.serving():
        assert home.ready()


def test_serve_alone_is_the_whole_service(home: Home) -> None:
    """The first start does what `init` does, says where, and repeats nothing; also after a kill in
    the middle of it."""
    home.template = None
    home.path.mkdir()
    migrated = home.run("db", "upgrade")
    assert migrated.returncode == 0, migrated.stderr
    with home.serving():
        said = home.log()
        key = (home.path / "admin.key").read_text().strip()
        with home.client(key) as client:
            assert client.put("/v1/files?name=x", content=b"x").status_code == 201
    assert f"the home is {home.path} (ON_API_HOME)" in said
    assert said.count(key) == 1
    with home.serving(), home.client(key) as client:
        assert client.get("/v1/files").json()["count"] == 1
        assert home.log().count(key) == 1


def test_serve_does_not_migrate_what_is_in_use(home: Home) -> None:
    """A database that is behind, or empty where the home is not: one sentence with the cure."""
    home.init()
    back = home.run("db", "downgrade", "-1", "--allow-data-loss")
    assert back.returncode == 0, back.stderr
    behind = home.run("serve")
    assert "on-api db upgrade" in behind.stderr
    assert "alembic upgrade head" in behind.stderr
    home.extra = {"ON_API_DATABASE_URL": f"sqlite:///{home.path / 'another.db'}"}
    empty = home.run("serve")
    assert "has been in use" in empty.stderr
    assert "on-api init" in empty.stderr
    for done in (behind, empty):
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_second_instance_on_the_same_home(home: Home) -> None:
    """It names the first; the first goes on."""
    home.init()
    with home.serving() as process:
        for other_port in (False, True):
            second = Home(home.path, rpc_port=home.rpc_port, gateway_port=home.gateway_port)
            if not other_port:
                second.port = home.port
            done = second.run("serve")
            assert done.returncode == 1
            assert f"process {process.pid}" in done.stderr
            assert "ON_API_HOME" in done.stderr
        assert home.ready()


@pytest.mark.parametrize(
    ("which", "cure"),
    [("port", "PORT="), ("rpc_port", "RPC_PORT="), ("gateway_port", "GATEWAY_PORT=")],
)
def test_a_port_that_is_taken(home: Home, which: str, cure: str) -> None:
    """Named with its cure; the next start, with the port free, is clean."""
    home.init()
    with socket.create_server(("127.0.0.1", getattr(home, which))):
        done = home.run("serve")
    assert done.returncode == 1
    assert str(getattr(home, which)) in done.stderr
    assert cure in done.stderr
    assert "Traceback" not in done.stderr
    with home.serving():
        assert home.ready()


def test_a_database_that_is_not_there(home: Home) -> None:
    """Which one, and what to do; never its password."""
    for url in ("postgresql://ada:hunter2@127.0.0.1:1/x", "sqlite:////nonexistent/x.db"):
        home.extra = {"ON_API_DATABASE_URL": url}
        for command in ("init", "serve"):
            done = home.run(command)
            assert done.returncode == 1
            assert url.rpartition("@")[2].removeprefix("sqlite:") in done.stderr
            assert "ON_API_DATABASE_URL" in done.stderr
            assert "hunter2" not in done.stderr
            assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["nowhere.invalid", "203.0.113.1"])
def test_a_host_that_is_none_of_ours(home: Home, host: str) -> None:
    """Another port would not help."""
    home.init()
    home.extra = {"ON_API_HOST": host}
    done = home.run("serve")
    assert done.returncode == 1
    assert host in done.stderr
    assert "ON_API_HOST" in done.stderr
    assert "ON_API_PORT" not in done.stderr


def test_a_home_that_can_not_be_written(tmp_path: Path) -> None:
    """As when it lies below a file; works for root too, whom no mode bits stop."""
    (tmp_path / "file").write_text("")
    done = Home(tmp_path / "file" / "home").run("init")
    assert done.returncode == 1
    assert "ON_API_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_go_and_no_ipfs(home: Home, tmp_path: Path) -> None:
    """And no way to the release: one sentence with the ways out."""
    home.init()
    home.extra = {
        "PATH": "/nonexistent",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    done = home.run("serve")
    assert done.returncode == 1
    for way in ("on PATH", "ON_API_NODE__BINARY", "install Go", "https://dist.ipfs.tech"):
        assert way in done.stderr
    assert "Traceback" not in done.stderr


def test_a_corrupt_repo(home: Home) -> None:
    """Says where it is and what to do; nothing is deleted."""
    home.init()
    with home.serving():
        pass
    (home.path / "ipfs" / "datastore_spec").write_text("garbage")
    done = home.run("serve")
    assert done.returncode == 1
    assert str(home.path / "ipfs") in done.stderr
    assert "Traceback" not in done.stderr
    assert (home.path / "ipfs" / "blocks").is_dir()


def test_wrong_settings_are_named_without_their_values(home: Home) -> None:
    """A secret that is too short must not be printed."""
    home.extra = {"ON_API_SECRET_KEY": "hunter2", "ON_API_PORT": "99999"}
    done = home.run("serve")
    assert done.returncode == 1
    assert "ON_API_SECRET_KEY" in done.stderr
    assert "ON_API_PORT" in done.stderr
    assert "hunter2" not in done.stderr
    home.extra = {"ON_API_CORS__ORIGINS": "https://app.example"}
    done = home.run("serve")
    assert done.returncode == 1
    assert "ON_API_CORS" in done.stderr
    assert '["https://' in done.stderr
    assert done.stderr.count("\n") == 1


def test_commands_for_users_and_keys(home: Home, kubo: Kubo) -> None:
    """What the README shows; a revoked key stops in a server that knows it."""
    home.init()
    home.extra = beside(kubo)
    made = home.run("users", "create", "ada", stdin="correct horse\ncorrect horse\n")
    assert made.returncode == 0, made.stderr
    key = home.run("keys", "create", "--user", "ada", "--scope", "files:read").stdout.strip()
    assert key.startswith("onapi_")
    assert home.run("keys", "create", "--user", "ada", "--scope", "admin").returncode == 1
    assert home.run("keys", "create", "--user", "nobody").returncode == 1
    assert home.run("users", "create", "ada", stdin="correct horse\n" * 2).returncode == 1
    with home.serving(), home.client(key) as client:
        assert client.get("/v1/files").status_code == 200
        listed = home.run("keys", "list", "--user", "ada", "--json").stdout
        assert key not in listed
        key_id = json.loads(listed)[0]["id"]
        assert home.run("keys", "revoke", "--user", "ada", key_id).returncode == 0
        until(lambda: client.get("/v1/files").status_code == 401, "the key is revoked")
    assert home.run("users", "password", "ada", stdin="new password\n" * 2).returncode == 0
    assert home.run("users", "deactivate", "ada").returncode == 0
    assert home.run("users", "delete", "ada", "--yes").returncode == 0
    assert "ada" not in home.run("users", "list").stdout


def test_no_temp_file_in_the_data_path(home: Home, tmp_path: Path) -> None:
    """Nothing on-api could write to but its own home: uploads still work."""
    key = home.init()
    home.extra = {"TMPDIR": str(tmp_path / "not there")}
    data = os.urandom(20 * MIB)
    with home.serving(), home.client(key) as client:
        files = {"file": ("x", data)}
        answer = client.post("/v1/files", files=files)
        assert answer.status_code == 201
        assert answer.json()["sha256"] == hashlib.sha256(data).hexdigest()
