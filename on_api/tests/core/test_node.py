"""The supervised Kubo, with the real program: good starts, bad ones, sudden ends of either side."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from on_api.core.backoff import Backoff
from on_api.core.errors import StartupError
from on_api.core.ipfs.daemon import process as node_module
from on_api.core.ipfs.daemon.binary import kubo_binary
from on_api.core.ipfs.daemon.process import ManagedNode, check_home, check_ports
from on_api.core.ipfs.daemon.repo import (
    config_differences,
    gateway_socket,
    kubo_environment,
    peer_id_of,
    prepare_repo,
)
from on_api.core.models.revisions import PROJECT
from on_api.core.setting_groups import NodeSettings
from on_api.tests.conftest import free_port
from on_api.tests.testing.deadline import until
from on_api.tests.testing.plain_http import NO_TLS

SECRET = "bearer:a secret of the tests"
AUTHORIZATION = {"Authorization": "Bearer a secret of the tests"}
MIB = 1024 * 1024

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into Linux's /proc")


@pytest.fixture(scope="module")
def binary() -> Path:
    """Kubo's program, as on-api finds it."""
    return kubo_binary(NodeSettings(), print)


@pytest.fixture
def settings(binary: Path) -> NodeSettings:
    """Ports that are free now."""
    return NodeSettings(binary=binary, rpc_port=free_port(), gateway_port=free_port())


class Talk:
    """What one says to a node from outside."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings

    def rpc(self, call: str, **request: object) -> httpx.Response:
        """An RPC with the secret, unless `headers` says otherwise."""
        url = f"http://127.0.0.1:{self.settings.rpc_port}/api/v0/{call}"
        arguments: dict[str, object] = {"headers": AUTHORIZATION, "timeout": 20, **request}
        return httpx.post(url, verify=NO_TLS, trust_env=False, **arguments)  # type: ignore[arg-type]

    def add(self, data: bytes) -> str:
        """The CID under which the node has stored and pinned the bytes."""
        answer = self.rpc("add", params={"pin": "true"}, files={"file": ("name", data)})
        return str(json.loads(answer.text.splitlines()[-1])["Hash"])

    def get(self, path: str, host: str = "127.0.0.1") -> httpx.Response:
        """What the gateway answers."""
        url = f"http://{host}:{self.settings.gateway_port}{path}"
        return httpx.get(url, verify=NO_TLS, trust_env=False, timeout=20, follow_redirects=False)

    def serves(self) -> bool:
        """Whether the gateway answers."""
        try:
            return self.get("/ipfs/bafkqaaa").is_success
        except httpx.TransportError:
            return False

    def is_up(self) -> bool:
        """Whether RPC and gateway answer."""
        try:
            return self.rpc("id").is_success and self.serves()
        except httpx.TransportError:
            return False


@pytest.fixture
def talk(settings: NodeSettings) -> Talk:
    """With the node of these settings."""
    return Talk(settings)


@pytest.fixture
def lines() -> list[str]:
    """What the node says to the person who waits."""
    return []


@pytest.fixture
def node(tmp_path: Path, settings: NodeSettings, lines: list[str]) -> Iterator[ManagedNode]:
    """A node that is not started, and stopped in the end."""
    node = ManagedNode(tmp_path / "home", settings, SECRET, lines.append)
    yield node
    node.stop()


def test_a_start_from_nothing(node: ManagedNode, talk: Talk, settings: NodeSettings) -> None:
    """One call later it stores, serves, tells no stranger, and has taken every setting."""
    node.start()
    assert node.pid is not None
    assert talk.rpc("id").json()["ID"] == peer_id_of(node.repo)
    data = os.urandom(3 * MIB)
    cid = talk.add(data)
    assert talk.get(f"/ipfs/{cid}", host="localhost").content == data
    assert config_differences(talk.rpc("config/show").json(), settings) == []
    assert (node.restarts, (node.home / "lock").read_text()) == (0, f"{os.getpid()}\n")

    pid = node.pid
    node.stop()
    assert has_ended(pid)
    assert not talk.is_up()
    assert not (node.repo / "api").exists(), "Kubo has not shut down properly"
    node.stop()

    node.start()
    assert talk.get(f"/ipfs/{cid}").content == data


def test_the_rpc_is_closed_to_others(node: ManagedNode, talk: Talk) -> None:
    """Without the secret, with another one, and with it beyond what on-api uses."""
    with node:
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic eDp5"}):
            for call in ("id", "version", "repo/gc", "pin/add", "config/show"):
                assert talk.rpc(call, headers=headers).status_code == 403, (call, headers)
        for call in ("repo/verify", "key/list", "config?arg=Identity", "files/rm", "shutdownx/y"):
            assert not talk.rpc(call).is_success, call
        used = ["version", "id", "repo/stat", "repo/version", "swarm/peers", "config/show"]
        used += ["pin/ls?type=recursive&stream=true", "files/stat?arg=/", "block/stat?arg=bafkqaaa"]
        for call in used:
            assert talk.rpc(call).is_success, call
        assert "PrivKey" not in talk.rpc("config/show").text


def test_the_gateway_fetches_nothing(node: ManagedNode, talk: Talk) -> None:
    """A block that isn't here is a 404 at once, as text; no routing, no redirect to subdomains."""
    with node:
        began = time.monotonic()
        missing = talk.get("/ipfs/bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy")
        assert time.monotonic() - began < 20
        assert missing.status_code == 404
        assert missing.headers["Content-Type"].startswith("text/plain")
        assert talk.get("/routing/v1/providers/bafkqaaa").status_code == 404
        assert talk.get("/ipfs/bafkqaaa", host="localhost").status_code == 200


def test_adds_without_options_follow_the_profile(node: ManagedNode, talk: Talk) -> None:
    """CIDv1; a small file is one raw block; chunks of 1 MiB under one root."""
    with node:
        raw_block = b"\x01\x55\x12\x20" + hashlib.sha256(b"hello world").digest()
        cid = base64.b32encode(raw_block).decode().lower().rstrip("=")
        assert talk.add(b"hello world") == f"b{cid}"
        stat = talk.rpc("files/stat", params={"arg": f"/ipfs/{talk.add(bytes(3 * MIB + 1))}"})
        assert (stat.json()["Blocks"], stat.json()["Size"]) == (4, 3 * MIB + 1)


@linux_only
def test_a_private_node_listens_on_loopback_only(node: ManagedNode, talk: Talk) -> None:
    """By its own word and by the kernel's; it is told no secret and reports nothing home."""
    with node:
        pid = node.pid
        addresses = talk.rpc("id").json()["Addresses"]
        assert addresses
        assert all(address.startswith("/ip4/127.0.0.1/") for address in addresses)
        assert talk.rpc("swarm/peers").json()["Peers"] is None
        assert set(listening(pid)) == {"127.0.0.1"}
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert not [entry for entry in environment if entry.startswith(b"ON_API_")]
        assert not (node.repo / "telemetry_uuid").exists()


def listening(pid: int | None) -> list[str]:
    """The addresses of a process's sockets that wait for TCP or get UDP; `::` for any of IPv6."""
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    addresses = []
    for table, waiting in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if f"socket:[{fields[9]}]" in links and fields[3] == waiting:
                number = fields[1].split(":")[0]
                little_endian = int(number, 16).to_bytes(4, "little") if len(number) == 8 else b""
                addresses.append(socket.inet_ntoa(little_endian) if little_endian else "::")
    return addresses


def test_a_second_one_in_the_same_home(
    node: ManagedNode, talk: Talk, tmp_path: Path, binary: Path
) -> None:
    """Names the first, whether it would run a node or only ask; the first goes on."""
    other = NodeSettings(binary=binary, rpc_port=free_port(), gateway_port=free_port())
    with node:
        with pytest.raises(StartupError, match=f"process {os.getpid()}") as raised:
            ManagedNode(tmp_path / "home", other, SECRET, print).start()
        assert "ON_API_HOME" in raised.value.details
        with pytest.raises(StartupError, match="Another on-api"):
            check_home(tmp_path / "home")
        assert talk.is_up()
    check_home(tmp_path / "home")


@pytest.mark.parametrize(
    ("setting", "cure"), [("rpc_port", " RPC_PORT="), ("gateway_port", " GATEWAY_PORT=")]
)
def test_a_port_that_is_taken(
    node: ManagedNode, settings: NodeSettings, setting: str, cure: str
) -> None:
    """Is named with its cure before anything is made; free again, the start is clean."""
    port = getattr(settings, setting)
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(StartupError, match=f"Port {port} is in use") as raised:
            node.start()
        assert cure in raised.value.details
        assert f"ON_API_NODE__{setting.upper()}" in raised.value.details
        assert not node.repo.exists()
    with node:
        pass


def test_ports_that_can_not_work() -> None:
    """One for both, or one for the public network that somebody has."""
    port = free_port()
    with pytest.raises(StartupError, match=f"{port} is configured twice"):
        check_ports(NodeSettings(rpc_port=port, gateway_port=port))
    settings = NodeSettings(rpc_port=port, gateway_port=free_port(), swarm_port=free_port())
    with socket.create_server(("127.0.0.1", settings.swarm_port)):
        check_ports(settings)
        with pytest.raises(StartupError, match="ON_API_NODE__SWARM_PORT"):
            check_ports(settings.model_copy(update={"network": "public"}))


def test_the_gateways_socket(node: ManagedNode, talk: Talk) -> None:
    """Answers as the port does, no other user, and again after a Kubo that left it behind."""
    node.start()
    path = gateway_socket(node.repo)
    assert path is not None
    for killed in (False, True):
        if killed:
            assert node.pid is not None
            os.kill(node.pid, signal.SIGKILL)
            until(lambda: node.restarts == 1 and talk.is_up(), "it is up again", 30)
        assert not path.stat().st_mode & 0o022
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), trust_env=False) as client:
            answer = client.get(f"http://127.0.0.1:{talk.settings.gateway_port}/ipfs/bafkqaaa")
        assert (answer.status_code, answer.content) == (200, b"")


def test_kubo_dies_and_comes_back(
    node: ManagedNode, talk: Talk, caplog: pytest.LogCaptureFixture
) -> None:
    """By itself, with what it had; every death is a warning."""
    with node, caplog.at_level(logging.WARNING):
        cid = talk.add(b"kept")
        for restarts in (1, 2):
            assert node.pid is not None
            os.kill(node.pid, signal.SIGKILL)
            until(lambda: caplog.text.count("running again") == restarts, "Kubo is back")  # noqa: B023 (called at once)
            assert node.restarts == restarts
            assert talk.is_up()
        assert talk.get(f"/ipfs/{cid}").content == b"kept"
    assert caplog.text.count("Kubo exited (code -9") == 2
    assert caplog.text.count("Kubo is running again") == 2
    assert "Kubo exited (code 0" not in caplog.text


def test_kubo_keeps_dying(
    node: ManagedNode, talk: Talk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, ever more rarely, until the cause is mended; a stop doesn't wait."""
    monkeypatch.setattr(node_module, "RESTARTS", Backoff(first=0.01, longest=0.04))
    with node, caplog.at_level(logging.WARNING):
        spec = node.repo / "datastore_spec"
        good = spec.read_text()
        spec.write_text("{}")
        assert node.pid is not None
        os.kill(node.pid, signal.SIGKILL)
        until(lambda: caplog.text.count("Kubo could not be restarted") >= 3, "three vain restarts")
        assert "does not match what is on disk" in caplog.text
        spec.write_text(good)
        until(talk.is_up, "Kubo is back")
        monkeypatch.setattr(node_module, "RESTARTS", Backoff(first=0.01, longest=60.0))
        spec.write_text("{}")
        os.kill(node.pid, signal.SIGKILL)
        count = node.restarts
        until(lambda: node.restarts > count, "it was tried again")
        began = time.monotonic()
    assert time.monotonic() - began < 20


ON_API = """
import sys, time
from pathlib import Path
from on_api.core.ipfs.daemon.process import ManagedNode
from on_api.core.models.revisions import PROJECT
from on_api.core.setting_groups import NodeSettings

settings = NodeSettings.model_validate_json(sys.argv[2])
node = ManagedNode(Path(sys.argv[1]), settings, sys.argv[3], print)
try:
    node.start()
    print("up", node.pid, flush=True)
    time.sleep(60)
finally:
    node.stop()
"""


@contextlib.contextmanager
def on_api_process(home: Path, settings: NodeSettings) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that runs a node; its first line says when."""
    with subprocess.Popen(
        [sys.executable, "-c", ON_API, str(home), settings.model_dump_json(), SECRET],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_pid(process: subprocess.Popen[str]) -> int:
    """Wait until the node of `on_api_process` is up."""
    assert process.stdout is not None
    word, pid = process.stdout.readline().split()
    assert word == "up"
    return int(pid)


@linux_only
def test_kill_9_of_on_api_ends_kubo_too(
    node: ManagedNode, talk: Talk, settings: NodeSettings, lines: list[str]
) -> None:
    """In an orderly way; the next start finds the home free and everything there."""
    with on_api_process(node.home, settings) as on_api:
        pid = read_pid(on_api)
        cid = talk.add(b"kept")
        on_api.kill()
        until(lambda: has_ended(pid), "Kubo has ended")
    assert "shutting down" in node.log.read_text()
    with node:
        assert talk.get(f"/ipfs/{cid}").content == b"kept"
    assert lines == []


def test_kill_9_at_any_moment_of_a_start(
    node: ManagedNode, talk: Talk, settings: NodeSettings
) -> None:
    """From the first start on: the next one always comes up, whatever the last has left."""
    with on_api_process(node.home, settings) as on_api:
        began = time.monotonic()
        read_pid(on_api)
        needed = time.monotonic() - began
    for share in (0.5, 0.65, 0.7, 0.8, 0.85, 0.9, 0.95, 1.1):
        for name in ("lock", "ipfs", "node.log") if share in (0.7, 0.8, 0.9) else ():
            if (node.home / name).exists():
                (node.home / name).rename(node.home / f"{name}-before-{share}")
        with (
            on_api_process(node.home, settings) as on_api,
            contextlib.suppress(subprocess.TimeoutExpired),
        ):
            on_api.wait(needed * share)
    with node:
        assert talk.is_up()
    assert not [path for path in node.home.iterdir() if path.name.startswith(".")]


def test_a_ctrl_c_is_for_on_api(node: ManagedNode, settings: NodeSettings) -> None:
    """Kubo, in the same terminal, hears of it only through on-api's orderly stop."""
    with on_api_process(node.home, settings) as on_api:
        pid = read_pid(on_api)
        assert os.getsid(pid) == pid
        assert os.getpgid(on_api.pid) == on_api.pid
        os.killpg(on_api.pid, signal.SIGINT)
        assert on_api.wait(20) != 0
        assert has_ended(pid)
    check_home(node.home)


@linux_only
def test_a_second_ctrl_c_waits_for_nothing(node: ManagedNode, settings: NodeSettings) -> None:
    """A Kubo that hangs while it stops is killed then, not after its half minute."""
    with on_api_process(node.home, settings) as on_api:
        pid = read_pid(on_api)
        os.kill(pid, signal.SIGSTOP)
        until(lambda: status_of(pid)["State"].startswith("T"), "Kubo hangs")
        os.killpg(on_api.pid, signal.SIGINT)
        sigterm = 1 << (signal.SIGTERM - 1)
        until(lambda: int(status_of(pid)["ShdPnd"], 16) & sigterm, "Kubo was told to end")
        os.killpg(on_api.pid, signal.SIGINT)
        on_api.wait(10)
        assert has_ended(pid)
    check_home(node.home)


def status_of(pid: int) -> dict[str, str]:
    """What Linux says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@contextlib.contextmanager
def leftover(home: Path, settings: NodeSettings, secret: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Kubo on the home's repo that nobody watches any more."""
    home.mkdir()
    repo = home / "ipfs"
    assert settings.binary is not None
    prepare_repo(settings.binary, repo, settings, secret)
    with subprocess.Popen(
        [settings.binary, "daemon"],
        env=kubo_environment(repo),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_kubo_that_was_left_over(
    node: ManagedNode, talk: Talk, settings: NodeSettings, lines: list[str]
) -> None:
    """Is asked to stop, then on-api starts its own: also where nothing ties the two together."""
    with leftover(node.home, settings, SECRET) as old:
        until(talk.is_up, "the leftover is up")
        with node:
            assert old.wait(20) == 0
            assert node.pid != old.pid
            assert talk.is_up()
    assert lines == ["waiting for the IPFS node from an earlier run to stop"]


def test_a_kubo_that_was_left_over_on_other_ports(
    node: ManagedNode, talk: Talk, settings: NodeSettings
) -> None:
    """Is found where it is, not where the settings now say."""
    ports = {"rpc_port": free_port(), "gateway_port": free_port()}
    before = settings.model_copy(update=ports)
    with leftover(node.home, before, SECRET) as old:
        until(Talk(before).is_up, "the leftover is up")
        with node:
            assert old.wait(20) == 0
            assert talk.is_up()


def test_a_kubo_that_was_left_over_while_starting(
    node: ManagedNode, talk: Talk, settings: NodeSettings
) -> None:
    """It can't be asked yet, but soon."""
    with leftover(node.home, settings, SECRET) as old:
        until((node.repo / "repo.lock").exists, "the leftover has the repo")
        with node:
            assert old.wait(20) == 0
            assert talk.is_up()


def test_a_kubo_that_is_not_ours(tmp_path: Path, talk: Talk, settings: NodeSettings) -> None:
    """It doesn't know our secret: it is named, and not touched."""
    impatient = settings.model_copy(update={"shutdown_timeout": 0.2})
    node = ManagedNode(tmp_path / "home", impatient, SECRET, print)
    with leftover(node.home, settings, "bearer:another") as other:
        until(talk.serves, "it is up")
        with pytest.raises(StartupError, match=f"process {other.pid}") as raised:
            node.start()
        assert str(node.repo) in raised.value.details
        assert other.poll() is None
        assert talk.serves()


def test_a_kubo_that_does_not_stop(
    tmp_path: Path, settings: NodeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Is killed when its time is over."""
    hasty = settings.model_copy(update={"shutdown_timeout": 0.3})
    node = ManagedNode(tmp_path / "home", hasty, SECRET, print)
    with caplog.at_level(logging.WARNING), node:
        pid = node.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < 20
    assert has_ended(pid)
    assert "did not stop in time" in caplog.text


def instead_of_daemon(folder: Path, binary: Path, body: str) -> Path:
    """Kubo, but for what `ipfs daemon` does."""
    program = folder / "ipfs-like"
    program.write_text(f'#!/bin/sh\n[ "$1" = daemon ] || exec {binary} "$@"\n{body}\n')
    program.chmod(0o755)
    return program


def test_a_kubo_that_does_not_answer(tmp_path: Path, settings: NodeSettings, binary: Path) -> None:
    """Is ended, and the error says how to give it longer."""
    changes = {
        "binary": instead_of_daemon(tmp_path, binary, "echo thinking; exec sleep 60"),
        "start_timeout": 0.5,
    }
    node = ManagedNode(tmp_path / "home", settings.model_copy(update=changes), SECRET, print)
    with pytest.raises(StartupError, match=r"did not respond within 0\.5 s") as raised:
        node.start()
    assert "ON_API_NODE__START_TIMEOUT" in raised.value.details
    assert "thinking" in raised.value.details
    assert node.pid is None
    check_home(node.home)


def test_a_kubo_that_ends_at_once(tmp_path: Path, settings: NodeSettings, binary: Path) -> None:
    """Its own last words are in the error, not those of an earlier run."""
    body = "echo Initializing; echo; echo 'Error: the moon is'; echo 'in the wrong phase'; exit 3"
    changes = {"binary": instead_of_daemon(tmp_path, binary, body)}
    node = ManagedNode(tmp_path / "home", settings.model_copy(update=changes), SECRET, print)
    node.home.mkdir()
    node.log.write_text("Error: of an earlier run\n")
    began = time.monotonic()
    with pytest.raises(StartupError, match="Error: the moon is in the wrong phase") as raised:
        node.start()
    assert time.monotonic() - began < 20
    assert str(node.log) in raised.value.details
    assert "earlier" not in raised.value.details


def test_a_corrupt_repo(node: ManagedNode, talk: Talk) -> None:
    """Where it is and what to do; after that it starts again."""
    with node:
        cid = talk.add(b"kept")
    shards = node.repo / "blocks" / "SHARDING"
    good = shards.read_text()
    shards.write_text("garbage")
    with pytest.raises(StartupError, match="backup") as raised:
        node.start()
    assert str(node.repo) in raised.value.details
    assert "shard identifier" in raised.value.details
    shards.write_text(good)
    with node:
        assert talk.get(f"/ipfs/{cid}").content == b"kept"


def test_a_long_log_is_put_aside(node: ManagedNode) -> None:
    """At the first line that does not fit."""
    node.home.mkdir()
    with node.log.open("wb") as log:
        log.truncate(11 * MIB)
    with node:
        assert node.log.stat().st_size < MIB
    assert (node.home / "node.log.1").stat().st_size == 11 * MIB


def test_a_log_is_put_aside_while_the_node_runs(
    tmp_path: Path, settings: NodeSettings, binary: Path
) -> None:
    """Without losing or dividing a line; a bounded number of older ones is kept."""
    lines = 700_000  # some 68 MiB: more than all files may hold together
    body = f"seq -f 'line %08.0f {'x' * 85}' {lines}; echo 'Error: that is all'; exit 3"
    changes = {"binary": instead_of_daemon(tmp_path, binary, body)}
    node = ManagedNode(tmp_path / "home", settings.model_copy(update=changes), SECRET, print)
    with pytest.raises(StartupError, match="Error: that is all"):
        node.start()
    logs = [node.log, *(node.home / f"node.log.{number}" for number in (1, 2, 3))]
    assert sorted(node.home.glob("node.log*")) == sorted(logs)
    assert all(log.stat().st_size <= 10 * MIB for log in logs)
    kept = b"".join(log.read_bytes() for log in reversed(logs)).decode().splitlines()
    *numbered, last = kept
    assert last == "Error: that is all"
    first = int(numbered[0].split()[1])
    assert [int(line.split()[1]) for line in numbered] == list(range(first, lines + 1))
    assert {len(line) for line in numbered} == {len(numbered[0])}
    assert sum(log.stat().st_size for log in logs) > 30 * MIB


@linux_only
def test_a_killed_on_api_lets_its_node_end_in_order(node: ManagedNode) -> None:
    """The log takes Kubo's last lines though nobody of on-api is left: the writer outlives it."""
    code = (
        "import sys, os, signal; from pathlib import Path;"
        "from on_api.core.ipfs.daemon.process import ManagedNode;"
        "from on_api.core.setting_groups import NodeSettings;"
        "node = ManagedNode(Path(sys.argv[1]),"
        " NodeSettings(rpc_port=int(sys.argv[2]), gateway_port=int(sys.argv[3])),"
        " 'bearer:secret of a test', print);"
        "node.start(); print(node.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ports = [str(free_port()), str(free_port())]
    done = subprocess.run(
        [sys.executable, "-c", code, str(node.home), *ports],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout.split()[-1])
    until(lambda: has_ended(pid), "Kubo ends", 30)
    until(lambda: "shutting down" in node.log.read_text(), "its last words are in the log")


def test_a_home_that_can_not_be_written(tmp_path: Path, settings: NodeSettings) -> None:
    """One sentence; works for root too, whom no mode bits stop."""
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "file" / "home"):
        with pytest.raises(StartupError, match="ON_API_HOME"):
            ManagedNode(home, settings, SECRET, print).start()


def test_a_log_that_can_not_be_written(node: ManagedNode, talk: Talk) -> None:
    """The home is left free and nothing runs."""
    node.log.mkdir(parents=True)
    with pytest.raises(StartupError, match="ON_API_HOME"):
        node.start()
    node.log.rmdir()
    with node:
        assert talk.is_up()


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or only its name is left."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return True
