"""`on-api serve` with several processes, on a real PostgreSQL: they share the work, one that dies
is replaced, and all of them end with the one that started them."""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from on_api.core.services.upkeep.siblings import joined
from on_api.tests.conftest import DatabaseMaker
from on_api.tests.testing.deadline import until
from on_api.tests.testing.plain_http import NO_TLS
from on_api.tests.testing.processes import Home

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="finds processes by /proc, which only Linux has"
)

UNKNOWN_CID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


@pytest.fixture
def home(tmp_path: Path, postgres_database: DatabaseMaker) -> Home:
    """For two processes, with an administrator."""
    (tmp_path / "home").mkdir(mode=0o700)
    url = postgres_database()
    return Home(tmp_path / "home", {"ON_API_DATABASE_URL": url, "ON_API_PROCESSES": "2"})


def serving_pids(parent: int) -> dict[int, int]:
    """The processes that one has started to serve, by their numbers."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            above = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except (OSError, IndexError):
            continue
        if b"on_api.cli.member" in words and int(above) == parent:
            found[int(words[words.index(b"on_api.cli.member") + 1])] = int(entry.name)
    return found


def is_there(pid: int) -> bool:
    """Whether a process lives."""
    return Path(f"/proc/{pid}").exists()


def answered(home: Home) -> dict[str, float]:
    """How many requests for its health each process has answered, as any of them tells."""
    text = httpx.get(f"{home.url}/metrics", verify=NO_TLS, trust_env=False).text
    found = re.findall(r'on_api_requests_total\{process="(\d)".*"/healthz".*\} (.*)', text)
    return {process: float(count) for process, count in found}


def test_two_that_serve(home: Home) -> None:
    """Connections are dealt out to both; when one is killed, those after it are served all the
    same, and another one takes its place. None outlives the one that started them, however that
    ends."""
    key = home.init()
    with home.serving() as process, home.client(key) as client:
        before = serving_pids(process.pid)
        assert before.keys() == {0, 1}
        file = client.put("/v1/files?name=x", content=b"x" * 5000).json()
        until(lambda: home.alive() and answered(home).keys() == {"0", "1"}, "both have answered")
        figures = httpx.get(f"{home.url}/metrics", verify=NO_TLS, trust_env=False).text
        for number in before:
            assert f'process_open_fds{{process="{number}"}}' in figures
        # What is the instance's is told once, without a process.
        assert re.findall(r"^on_api_node_up.*", figures, re.MULTILINE) == ["on_api_node_up 1.0"]

        os.kill(before[0], signal.SIGKILL)  # which does the worker's work, too
        for _ in range(10):
            got = httpx.get(
                f"{home.url}/ipfs/{file['cid']}", verify=NO_TLS, trust_env=False, timeout=60
            )
            assert got.content == b"x" * 5000
        until(lambda: len(serving_pids(process.pid)) == 2, "another one is there", 60)
        after = serving_pids(process.pid)
        assert after[0] != before[0]
        assert after[1] == before[1]
        with home.client(key) as again:
            again.post("/v1/pins", json={"cid": UNKNOWN_CID}).raise_for_status()
            failed = {"status": "failed"}
            until(lambda: again.get("/v1/pins", params=failed).json()["count"], "it works", 60)

        process.kill()
        process.wait()
        until(lambda: not any(map(is_there, after.values())), "they end", 60)
    with home.serving() as process:
        last = serving_pids(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert process.returncode == 0
        assert not any(map(is_there, last.values()))
        assert not home.kubo_runs()
    with socket.create_server(("127.0.0.1", home.port)):
        pass
    assert "Traceback" not in home.log()


def is_served(home: Home) -> bool:
    """Whether any of twenty connections is answered: those that the kernel has given to the one
    that is missing wait for the next one."""
    with ExitStack() as stack:
        asking = [
            stack.enter_context(socket.create_connection(("127.0.0.1", home.port), 10))
            for _ in range(20)
        ]
        for connection in asking:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answered, _, _ = select.select(asking, [], [], 15)
        return bool(answered) and answered[0].recv(12) == b"HTTP/1.1 200"


def test_one_that_can_not_be_started_again_yet(home: Home) -> None:
    """Since there are no descriptors left for it: the other one serves on, and it is started as
    soon as there are."""
    home.init()
    with home.serving() as process:
        before = serving_pids(process.pid)
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, hard))
        os.kill(before[1], signal.SIGKILL)
        until(
            lambda: "could not start API process" in home.log() or process.poll() is not None,
            "it tries",
        )
        assert is_served(home)
        assert serving_pids(process.pid) == {0: before[0]}
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (soft, hard))
        until(lambda: serving_pids(process.pid).keys() == {0, 1}, "another one is there", 60)
        assert serving_pids(process.pid)[0] == before[0]
    assert "Traceback" not in home.log()


def test_sqlite_has_one_writer(tmp_path: Path) -> None:
    """Said in one sentence, with what to do."""
    home = Home(tmp_path)
    home.init()
    done = home.run("serve", "--processes", "2")
    assert done.returncode == 1
    assert "PostgreSQL" in done.stderr
    assert "ON_API_DATABASE_URL" in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_second_on_api_at_the_same_address(home: Home, tmp_path: Path) -> None:
    """Though the sockets could be shared: another home's processes would take some of the
    connections."""
    home.init()
    with socket.create_server(("127.0.0.1", home.port)):
        assert "PORT=" in home.run("serve").stderr
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", home.port))
        one.listen()
        assert "PORT=" in home.run("serve").stderr


def test_metrics_of_several_processes() -> None:
    """One text: each family once, each sample with its process."""
    head = "# HELP a_total A.\n# TYPE a_total counter\n"
    one = head + 'a_total{x="y"} 1.0\n# HELP b B.\n# TYPE b gauge\nb 2.0\n'
    other = head + 'a_total{x="y"} 3.0\n# HELP c C.\nc 4.0\n'
    assert joined({"0": one, "1": other}).decode().splitlines() == [
        "# HELP a_total A.",
        "# TYPE a_total counter",
        'a_total{process="0",x="y"} 1.0',
        'a_total{process="1",x="y"} 3.0',
        "# HELP b B.",
        "# TYPE b gauge",
        'b{process="0"} 2.0',
        "# HELP c C.",
        'c{process="1"} 4.0',
    ]
