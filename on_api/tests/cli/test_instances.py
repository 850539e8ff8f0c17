"""Which on-api and which node a command speaks to: those of its home and its database, whoever else
listens where it would look."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from on_api.core.ipfs.daemon.process import ManagedNode
from on_api.core.services.upkeep.instance import running_instance
from on_api.core.setting_groups import IpfsSettings, NodeSettings
from on_api.tests.conftest import DatabaseMaker, Kubo, Server, free_port, make_settings
from on_api.tests.testing.dags import car_of, tree
from on_api.tests.testing.deadline import until
from on_api.tests.testing.processes import Home, beside, working
from on_api.tests.testing.strangers import StrangeKubo, listener, strange_kubo

SECRET = "bearer:a secret for one node only"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StrangeKubo]:
    """Somebody's Kubo, with a file that they have not pinned."""
    with strange_kubo(tmp_path_factory.mktemp("stranger")) as kubo:
        kubo("add", "-q", "--pin=false", data=b"theirs, not pinned")
        yield kubo


@pytest.fixture
def car(tmp_path: Path) -> Path:
    """A CAR to import."""
    path = tmp_path / "some.car"
    path.write_bytes(car_of(*tree()))
    return path


def recorded(home: Home) -> tuple[int, int]:
    """How many runs of maintenance and how many imports the home's database tells of."""
    with sqlite3.connect(home.path / "on-api.db") as database:
        runs = database.execute(
            "SELECT count(*) FROM maintenance WHERE result IS NOT NULL AND kind != 'census'"
        )
        imports = database.execute("SELECT count(*) FROM imports")
        return int(runs.fetchone()[0]), int(imports.fetchone()[0])


def test_a_strangers_node_at_the_default_port_is_left_alone(
    home: Home, stranger: StrangeKubo, car: Path
) -> None:
    """Whatever the command: it fails in a sentence, nothing there changes, nothing is recorded."""
    home.init()
    home.rpc_port, home.gateway_port = stranger.rpc_port, stranger.gateway_port
    before = stranger.state()
    for command in (
        ("gc",),
        ("fsck",),
        ("fsck", "--repair", "--quick"),
        ("imports", "start", "car", str(car)),
        ("node", "status"),
        ("doctor",),
    ):
        done = home.run(*command)
        assert done.returncode == 1, (command, done.stdout)
        assert "not running" in done.stdout + done.stderr, (command, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr
    assert recorded(home) == (0, 0)
    assert stranger.state() == before


def test_commands_find_the_instance_of_their_home(home: Home, stranger: StrangeKubo) -> None:
    """Where it was moved to, though their own settings say a stranger's ports; its file tells no
    secret, is for its owner alone and goes with it."""
    key = home.init()
    moved = Home(home.path, rpc_port=stranger.rpc_port, gateway_port=stranger.gateway_port)
    before = stranger.state()
    file = home.path / "instance.json"
    with home.serving(), home.client(key) as client:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        config = json.loads((home.path / "ipfs" / "config").read_text())
        secret = config["API"]["Authorizations"]["on-api"]["AuthSecret"].removeprefix("bearer:")
        assert secret not in file.read_text()
        assert client.put("/v1/files?name=x", content=b"ours").status_code == 201
        report = json.loads(moved.run("fsck", "--json").stdout)
        assert (report["clean"], report["contents"], report["findings"]) == (True, 1, [])
        assert moved.run("gc").returncode == 0
        status = json.loads(moved.run("node", "status", "--json").stdout)
        assert status["rpc_url"].endswith(f":{home.rpc_port}")
        assert status["node"]["id"] == config["Identity"]["PeerID"]
        doctor = moved.run("doctor", "--json")
        assert {finding["verdict"] for finding in json.loads(doctor.stdout)} == {"ok"}
        assert recorded(home) == (2, 0)
    assert not file.exists()
    assert stranger.state() == before


def test_what_a_killed_instance_has_left_is_believed_by_nobody(home: Home) -> None:
    """Its file stays, without the lock; the next start writes a new one."""
    home.init()
    with home.serving() as process:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        until(lambda: not home.kubo_runs(), "its node ends with it", 30)
    assert (home.path / "instance.json").exists()
    assert running_instance(home.path) is None
    with listener(home.rpc_port) as heard:
        assert home.run("gc").returncode == 1
    assert heard.heard == []
    with home.serving() as process:
        instance = running_instance(home.path)
        assert instance is not None
        assert (instance.pid, instance.port) == (process.pid, home.port)


def test_a_command_with_another_database_than_the_instance(home: Home, tmp_path: Path) -> None:
    """What would change the common node isn't begun; what looks at accounts says so; doctor too."""
    home.init()
    other = Home(home.path, {"ON_API_DATABASE_URL": f"sqlite:///{tmp_path / 'other.db'}"})
    assert other.run("init").returncode == 0
    with home.serving():
        for command in (("gc",), ("fsck", "--repair")):
            done = other.run(*command)
            assert done.returncode == 1
            assert "ON_API_DATABASE_URL" in done.stderr
        listed = other.run("users", "list")
        assert listed.returncode == 0
        assert "a different database" in listed.stderr
        found = {each["name"]: each for each in json.loads(other.run("doctor", "--json").stdout)}
        assert found["instance"]["verdict"] == "broken"
        assert "ON_API_DATABASE_URL" in found["instance"]["cure"]
        assert home.run("users", "list").stderr == ""


def test_a_second_database_leaves_the_first_ones_key(home: Home, tmp_path: Path) -> None:
    """Its administrator's key gets a file of its own, and both databases are told by theirs."""
    first = home.init()
    other = Home(home.path, {"ON_API_DATABASE_URL": f"sqlite:///{tmp_path / 'other.db'}"})
    made = other.run("init")
    assert (home.path / "admin.key").read_text().strip() == first
    [file] = home.path.glob("admin-*.key")
    second = file.read_text().strip()
    assert second != first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert second in made.stdout
    assert str(file) in made.stdout
    assert other.run("init").stdout == ""
    for served, key, name in ((other, second, file.name), (home, first, "admin.key")):
        with served.serving(), served.client(key) as client:
            assert client.get("/v1/users/me").status_code == 200
        assert f"/{name})" in served.log()


def test_a_key_that_a_killed_init_has_left_under_its_own_name(home: Home) -> None:
    """The next one gives it its place."""
    key = home.init()
    main = home.path / "admin.key"
    main.rename(home.path / f"admin-{key[7:13]}.key")
    assert home.run("init").returncode == 0
    assert main.read_text().strip() == key
    assert list(home.path.glob("admin-*.key")) == []


def test_commands_wait_for_a_server_to_take_an_external_node(
    home: Home, kubo: Kubo, stranger: StrangeKubo
) -> None:
    """A new database knows none; then it knows one, and another one has to be accepted."""
    home.init()
    home.extra |= beside(kubo)
    refused = home.run("gc")
    assert refused.returncode == 1
    assert "on-api node adopt" in refused.stderr
    assert recorded(home) == (0, 0)
    with home.serving():
        assert home.run("fsck", "--quick").returncode == 0
    before = stranger.state()
    urls = stranger.urls()
    other = Home(
        home.path,
        {
            "ON_API_IPFS__RPC_URL": urls["rpc_url"],
            "ON_API_IPFS__GATEWAY_URL": urls["gateway_url"],
        },
    )
    done = recorded(home)
    for command in (("gc",), ("fsck", "--repair"), ("node", "status")):
        refused = other.run(*command)
        assert refused.returncode == 1
        assert stranger.peer_id in refused.stdout + refused.stderr
    found = {each["name"]: each for each in json.loads(other.run("doctor", "--json").stdout)}
    assert "on-api node adopt" in found["node"]["cure"]
    assert recorded(home) == done
    assert stranger.state() == before
    adopted = other.run("node", "adopt")
    assert adopted.returncode == 0, adopted.stderr
    assert stranger.peer_id in adopted.stdout
    assert other.run("fsck", "--quick").returncode == 0
    assert home.run("fsck", "--quick").returncode == 1


def test_a_node_that_another_one_replaces_while_on_api_runs(
    new_database: DatabaseMaker, tmp_path: Path
) -> None:
    """Nothing of ours reaches the other one at the same ports: no upload, no unpinning; when the
    first one is back, or the other was adopted, all goes on."""
    node = NodeSettings(rpc_port=free_port(), gateway_port=free_port())
    ipfs = {
        "rpc_url": f"http://127.0.0.1:{node.rpc_port}",
        "gateway_url": f"http://127.0.0.1:{node.gateway_port}",
        "rpc_auth": SECRET,
    }
    settings = make_settings(
        tmp_path / "home",
        new_database(),
        ipfs=IpfsSettings.model_validate(ipfs),
        gc={"grace": 0, "interval": 0},
    )
    settings.home.mkdir()
    with Server(settings) as server:
        user = server.new_user(admin=True)
        with user.client as client:
            with ManagedNode(tmp_path / "ours", node, SECRET, print):
                file = user.upload(b"on both of them")
            with strange_kubo(
                tmp_path / "theirs", rpc_port=node.rpc_port, gateway_port=node.gateway_port
            ) as stranger:
                cid = stranger(
                    "add", "-Q", "--cid-version=1", "--raw-leaves", data=b"on both of them"
                )
                assert cid == file["cid"]
                before = stranger.state()
                assert client.delete(f"/v1/files/{file['id']}").status_code == 204
                until(lambda: "instead of" in client.get("/readyz").text, "the change is seen", 60)
                refused = client.put("/v1/files?name=x", content=b"for the first one")
                assert refused.status_code == 503
                assert refused.json()["error"]["reason"] == "WRONG_NODE"
                # A worker of its own begins with what was left to be unpinned.
                with working(settings, 2) as worker:
                    log = settings.home.glob("worker-*.log")
                    output = next(iter(log))
                    until(lambda: "instead of" in output.read_text(), "it has tried", 60)
                    assert worker.poll() is None
                assert stranger.state() == before
            with ManagedNode(tmp_path / "ours", node, SECRET, print):
                until(lambda: client.get("/readyz").status_code == 200, "ours is back", 60)
                assert client.put("/v1/files?name=x", content=b"again").status_code == 201
