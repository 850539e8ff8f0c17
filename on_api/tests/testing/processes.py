"""on-api as its operator starts it: in processes and homes of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from on_api.core.models.revisions import PROJECT
from on_api.core.settings import Settings
from on_api.tests.conftest import Kubo, free_port
from on_api.tests.testing.deadline import until
from on_api.tests.testing.plain_http import NO_TLS

ON_API = Path(sys.executable).parent / "on-api"


@dataclass
class Home:
    """An `ON_API_HOME` with its own ports."""

    path: Path
    extra: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    rpc_port: int = field(default_factory=free_port)
    gateway_port: int = field(default_factory=free_port)
    template: Path | None = None
    """A home that `init` has made before, with no settings of its own."""
    program: Path = ON_API
    folder: Path = PROJECT
    """Folder in which its processes are started."""

    @property
    def url(self) -> str:
        """Origin that it serves at."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of its processes, without `ON_API_…` variables of the test run."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("ON_API_")}
        return {
            **inherited,
            "ON_API_HOME": str(self.path),
            "ON_API_PORT": str(self.port),
            "ON_API_NODE__RPC_PORT": str(self.rpc_port),
            "ON_API_NODE__GATEWAY_PORT": str(self.gateway_port),
            "ON_API_AUTH__SCRYPT_LOG_N": "10",
            **self.extra,
        }

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [self.program, *arguments],
            env=self.environment,
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def init(self) -> str:
        """Run `on-api init`, or copy what it has made before; return the administrator's key."""
        if self.template is not None:
            shutil.copytree(self.template, self.path, dirs_exist_ok=True)
        else:
            done = self.run("init")
            assert done.returncode == 0, done.stderr
        return (self.path / "admin.key").read_text().strip()

    def client(self, key: str) -> httpx.Client:
        """Return a client that sends a key."""
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=60,
            verify=NO_TLS,
            trust_env=False,
        )

    @contextmanager
    def serving(self, *, is_ready: bool = True) -> Iterator[subprocess.Popen[bytes]]:
        """Run `on-api serve`, and wait until it is ready or at least alive; it is ended by SIGINT
        unless the test has ended it."""
        waits_for = self.ready if is_ready else self.alive
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                [self.program, "serve"],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            until(lambda: process.poll() is not None or waits_for(), "on-api is ready", 60)
            assert process.poll() is None, self.log()
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(60)

    def alive(self) -> bool:
        """Return whether `/healthz` answers 200."""
        return self._is_well("/healthz")

    def ready(self) -> bool:
        """Return whether `/readyz` answers 200."""
        return self._is_well("/readyz")

    @property
    def log_file(self) -> Path:
        """File that takes what `serve` writes."""
        return self.path / "serve.log"

    def log(self) -> str:
        """Return what `serve` wrote."""
        return self.log_file.read_text()

    def kubo_pids(self) -> set[int]:
        """Return the Kubo processes of this home's repo: one, none, or two for a moment."""
        return {
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit()
            and _environment(entry).get("IPFS_PATH") == str(self.path / "ipfs")
            and b"daemon" in _read(entry / "cmdline")
        }

    def kubo_pid(self) -> int:
        """Return the only Kubo process of this home."""
        [pid] = self.kubo_pids()
        return pid

    def kubo_runs(self) -> bool:
        """Return whether a Kubo runs on this home's repo."""
        return bool(self.kubo_pids())

    def _is_well(self, path: str) -> bool:
        try:
            answer = httpx.get(self.url + path, verify=NO_TLS, trust_env=False, timeout=5)
        except httpx.TransportError:
            return False
        return answer.status_code == 200


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _environment(process: Path) -> dict[str, str]:
    pairs = _read(process / "environ").decode(errors="replace").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def beside(kubo: Kubo) -> dict[str, str]:
    """Return the settings of a server that uses the tests' node instead of its own."""
    secret = kubo.ipfs.rpc_auth
    return {
        "ON_API_IPFS__RPC_URL": str(kubo.ipfs.rpc_url),
        "ON_API_IPFS__GATEWAY_URL": str(kubo.ipfs.gateway_url),
        "ON_API_IPFS__RPC_AUTH": secret.get_secret_value() if secret else "",
    }


def peak_memory(pid: int) -> int:
    """Return the peak resident memory of a process, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@contextmanager
def working(
    settings: Settings, lease_seconds: int, **more: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `on-api worker` with a server's settings, and kill it when the block ends."""
    log = settings.home / f"worker-{uuid.uuid4()}.log"
    secret, rpc_auth = settings.secret_key, settings.ipfs.rpc_auth
    named = {"ON_API_SECRET_KEY": secret.get_secret_value()} if secret else {}
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("ON_API_")},
        "ON_API_HOME": str(settings.home),
        "ON_API_DATABASE_URL": settings.sqlalchemy_url,
        **named,
        "ON_API_IPFS__RPC_URL": settings.rpc_url,
        "ON_API_IPFS__GATEWAY_URL": settings.gateway_url,
        "ON_API_IPFS__RPC_AUTH": rpc_auth.get_secret_value() if rpc_auth else "",
        "ON_API_WORKER__POLL": "0.1",
        "ON_API_WORKER__LEASE_SECONDS": str(lease_seconds),
        **more,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [ON_API, "worker"], env=environment, cwd=PROJECT, stdout=output, stderr=output
        )
    try:
        until(lambda: b"the worker is running" in log.read_bytes(), "the worker is running", 60)
        yield process
    finally:
        process.kill()
        process.wait()
