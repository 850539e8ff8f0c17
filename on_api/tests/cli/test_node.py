"""`on-api node` as an operator meets it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from on_api.core.ipfs.daemon.process import check_home
from on_api.core.ipfs.daemon.version import KUBO_VERSION, TESTED_RANGE
from on_api.tests.testing.processes import ON_API, Home

SECRET = "a master secret that only the tests know"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home that nothing was done in yet."""
    return Home(tmp_path / "home", {"ON_API_SECRET_KEY": SECRET})


@contextmanager
def running(home: Home, *start: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`on-api node run`, up: it has said its last line before it waits."""
    with subprocess.Popen(
        [*start, ON_API, "node", "run"],
        env=home.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            shown = [process.stdout.readline() for _ in range(5)]
            assert "Ctrl-C" in shown[-1], process.stderr.read()
            assert f":{home.rpc_port}\n" in shown[0]
            assert f":{home.gateway_port}/ipfs/" in shown[1]
            assert str(home.path / "ipfs") in shown[2]
            yield process
        finally:
            process.kill()


IN_A_SCRIPTS_BACKGROUND = ("sh", "-c", 'trap \'\' INT; exec "$0" "$@"')
"""How a shell without job control starts `command &`: with SIGINT ignored."""


@pytest.mark.parametrize("start", [(), IN_A_SCRIPTS_BACKGROUND], ids=["directly", "background"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_run_until_told_to_stop(home: Home, signum: signal.Signals, start: tuple[str, ...]) -> None:
    """By Ctrl-C or by a service manager: exit code 0, the home free, Kubo gone."""
    with running(home, *start) as process:
        assert home.run("node", "status").returncode == 0
        os.killpg(process.pid, signum)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    check_home(home.path)
    assert home.run("node", "status").returncode == 1
    with socket.create_server(("127.0.0.1", home.rpc_port)):
        pass


def test_status(home: Home) -> None:
    """For people and for scripts, of a node that runs and of one that doesn't."""
    down = home.run("node", "status", "--json")
    assert down.returncode == 1
    answer = json.loads(down.stdout)
    assert (answer["reachable"], answer["node"]) == (False, None)
    assert answer["problem"]
    assert home.run("node", "status").stdout.startswith("not reachable: ")
    with running(home):
        up = home.run("node", "status", "--json")
        assert up.returncode == 0, up.stderr
        answer = json.loads(up.stdout)
        assert answer["reachable"] is True
        assert answer["managed"] is True
        assert answer["rpc_url"].endswith(f":{home.rpc_port}")
        assert answer["node"]["version"] == KUBO_VERSION
        assert answer["node"]["tested"] is True
        assert answer["node"]["peers"] == 0
        assert answer["node"]["repo_limit"] == 10**12
        shown = home.run("node", "status").stdout
        assert answer["node"]["id"] in shown
        assert TESTED_RANGE in shown
        assert "1,000.000 GB" in shown


def test_config(home: Home) -> None:
    """What is wanted and what the file has otherwise, without the node's secrets."""
    before = json.loads(home.run("node", "config").stdout)
    assert before["wanted"]["Gateway.NoFetch"] is True
    assert (before["config_file"], before["stale"], before["differences"]) == (None, None, None)
    with running(home):
        pass
    file = home.path / "ipfs" / "config"
    config = json.loads(file.read_text())
    shown = home.run("node", "config").stdout
    assert config["Identity"]["PrivKey"] not in shown
    assert config["API"]["Authorizations"]["on-api"]["AuthSecret"] not in shown
    after = json.loads(shown)
    assert (after["config_file"], after["stale"], after["differences"]) == (str(file), [], [])
    config["Gateway"]["NoFetch"] = False
    file.write_text(json.dumps(config))
    changed = json.loads(home.run("node", "config").stdout)
    assert changed["stale"] == ["Gateway.NoFetch"]
    assert len(changed["differences"]) == 1


def test_a_node_that_runs_elsewhere_is_not_run_here(home: Home) -> None:
    """One sentence that names the setting."""
    home.extra["ON_API_IPFS__RPC_URL"] = "http://127.0.0.1:1"
    home.extra["ON_API_IPFS__GATEWAY_URL"] = "http://127.0.0.1:2"
    done = home.run("node", "run")
    assert done.returncode == 1
    assert "ON_API_IPFS__RPC_URL" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(home.run("node", "config").stdout)["config_file"] is None
