"""Programs that may listen where on-api's node is expected: another Kubo as `ipfs init` makes it,
and a listener that records what it receives."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from on_api.core.ipfs.daemon.binary import kubo_binary
from on_api.core.setting_groups import NodeSettings
from on_api.tests.conftest import free_port
from on_api.tests.testing.deadline import until


@dataclass(frozen=True)
class StrangeKubo:
    """A running Kubo whose RPC is open to all on loopback."""

    binary: Path
    repo: Path
    rpc_port: int
    gateway_port: int

    def __call__(self, *command: str, data: bytes = b"") -> str:
        """Run a command, and return its output."""
        done = subprocess.run(
            [self.binary, *command],
            env={**os.environ, "IPFS_PATH": str(self.repo)},
            input=data,
            capture_output=True,
            timeout=90,
            check=True,
        )
        return done.stdout.decode().strip()

    def urls(self, host: str = "127.0.0.1") -> dict[str, str]:
        """Return the settings of an external node."""
        return {
            "rpc_url": f"http://{host}:{self.rpc_port}",
            "gateway_url": f"http://{host}:{self.gateway_port}",
        }

    @property
    def peer_id(self) -> str:
        """Peer id."""
        return self("id", "-f", "<id>")

    def state(self) -> dict[str, object]:
        """Return all of its state that on-api could change."""
        return {
            "blocks": sorted(self("refs", "local").split()),
            "pins": sorted(self("pin", "ls", "--names").splitlines()),
            "files": self("files", "ls"),
            "peers": self("swarm", "peers"),
            "config": self("config", "show"),
        }


@contextmanager
def strange_kubo(
    folder: Path,
    *,
    rpc_port: int | None = None,
    gateway_port: int | None = None,
    ipv6: bool = False,
) -> Iterator[StrangeKubo]:
    """Run a private daemon with its repo in `folder`, and with Kubo's default gateway settings.

    With `ipv6` it also listens at ::1.
    """
    binary = kubo_binary(NodeSettings(), print)
    repo = folder / "repo"
    kubo = StrangeKubo(binary, repo, rpc_port or free_port(), gateway_port or free_port())
    if not repo.exists():
        repo.mkdir(parents=True)
        kubo("init", "--profile=test")
    config = json.loads((repo / "config").read_text())
    hosts = ["/ip4/127.0.0.1", "/ip6/::1"] if ipv6 else ["/ip4/127.0.0.1"]
    config["Addresses"]["API"] = [f"{host}/tcp/{kubo.rpc_port}" for host in hosts]
    config["Addresses"]["Gateway"] = [f"{host}/tcp/{kubo.gateway_port}" for host in hosts]
    (repo / "config").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [binary, "daemon"],
            env={**os.environ, "IPFS_PATH": str(repo)},
            stdout=log,
            stderr=log,
        )
    try:
        until(
            lambda: (
                daemon.poll() is not None or b"Daemon is ready" in (folder / "log").read_bytes()
            ),
            "the stranger answers",
            60,
        )
        assert daemon.poll() is None, (folder / "log").read_text()
        yield kubo
    finally:
        daemon.terminate()
        daemon.wait(60)


@dataclass
class Listener:
    """Listener that records what it receives, and sends `answer` after each request's head."""

    port: int
    answer: bytes
    heard: list[bytes] = field(default_factory=list)

    @property
    def all_heard(self) -> bytes:
        """All bytes received, of all connections."""
        return b"".join(self.heard)


@contextmanager
def listener(port: int | None = None, answer: bytes = b"") -> Iterator[Listener]:
    """Listen until the block ends."""
    server = socket.create_server(("127.0.0.1", port or 0), backlog=64)
    listening = Listener(server.getsockname()[1], answer)

    def hear(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(10)
            while data := connection.recv(65536):
                listening.heard.append(data)
                if data.endswith(b"\r\n\r\n"):
                    connection.sendall(listening.answer)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                threading.Thread(target=hear, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listening
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)
