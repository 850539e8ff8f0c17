"""Who listens at a port, by real locks and real sockets of other processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from on_api.core.ipfs.daemon.whose import lock_holder, rpc_port_of
from on_api.tests.testing.strangers import listener

HOLDER = """
import fcntl, socket, sys
lock = open(sys.argv[1], "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(repo: Path) -> Iterator[tuple[int, int]]:
    """A process that holds a repo as Kubo does and listens: its id and its port."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(repo / "repo.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.kill()


def write_address(repo: Path, port: int) -> None:
    """As Kubo does when it listens."""
    (repo / "api").write_text(f"/ip4/127.0.0.1/tcp/{port}")


def test_the_port_of_who_holds_the_repo(tmp_path: Path) -> None:
    """None without a lock, and again when its holder has ended, whatever the file says."""
    assert rpc_port_of(tmp_path) is None
    with holder(tmp_path) as (pid, port):
        assert lock_holder(tmp_path / "repo.lock") == pid
        assert rpc_port_of(tmp_path) is None
        write_address(tmp_path, port)
        assert rpc_port_of(tmp_path) == port
    assert lock_holder(tmp_path / "repo.lock") is None
    assert rpc_port_of(tmp_path) is None


@pytest.mark.parametrize("address", ["", "/ip4/10.0.0.1/tcp/5001", "/unix/x", "5001", "\\xff"])
def test_an_address_that_is_none(tmp_path: Path, address: str) -> None:
    """Is no port of anybody's."""
    with holder(tmp_path):
        (tmp_path / "api").write_bytes(address.encode("latin-1"))
        assert rpc_port_of(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's /proc")
def test_a_stranger_at_the_address_in_an_old_file(tmp_path: Path) -> None:
    """The repo is held, but who listens at the address that it names is another process."""
    with holder(tmp_path), listener() as other:
        write_address(tmp_path, other.port)
        assert rpc_port_of(tmp_path) is None
