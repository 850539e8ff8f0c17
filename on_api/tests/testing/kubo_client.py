"""A Kubo outside on-api: its own daemon on loopback, and its command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from on_api.core.ipfs.daemon.binary import kubo_binary
from on_api.core.ipfs.daemon.repo import kubo_environment, prepare_repo, read_config
from on_api.core.setting_groups import NodeSettings
from on_api.tests.conftest import free_port
from on_api.tests.testing.deadline import until


class KuboClient:
    """The command line `ipfs`, with a repo."""

    def __init__(self, binary: Path, repo: Path) -> None:
        self._binary = binary
        self.repo = repo

    def run(self, *command: str, data: bytes = b"") -> subprocess.CompletedProcess[str]:
        """Run a command, and return its result, successful or not."""
        done = subprocess.run(
            [self._binary, *command],
            env=kubo_environment(self.repo),
            input=data,
            capture_output=True,
            timeout=90,
            check=False,
        )
        output, errors = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(done.args, done.returncode, output, errors)

    def __call__(self, *command: str, data: bytes = b"") -> str:
        """Run a command that must succeed, and return its output."""
        done = self.run(*command, data=data)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def lines(self, *command: str) -> list[dict[str, Any]]:
        """Run a command, and return the JSON objects that it prints."""
        return [json.loads(line) for line in self(*command, "--enc=json").splitlines()]


@contextmanager
def running_client(folder: Path, **environment: str) -> Iterator[KuboClient]:
    """Run a private daemon with its repo in `folder`; its RPC is open to all on loopback."""
    settings = NodeSettings(rpc_port=free_port(), gateway_port=free_port())
    binary = kubo_binary(settings, print)
    repo = folder / "repo"
    prepare_repo(binary, repo, settings, "bearer:not used")
    config = read_config(repo)
    config["API"] = {}
    (repo / "config").write_text(json.dumps(config), encoding="utf-8")
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [binary, "daemon"], env=kubo_environment(repo) | environment, stdout=log, stderr=log
        )
        client = KuboClient(binary, repo)
        try:
            until(
                lambda: (
                    daemon.poll() is not None
                    or ((repo / "api").exists() and client.run("id").returncode == 0)
                ),
                "the client's daemon answers",
            )
            assert daemon.poll() is None, (folder / "log").read_text(encoding="utf-8")
            yield client
        finally:
            daemon.terminate()
            daemon.wait(30)
