"""Finding, building and fetching Kubo's program, with a fake Go and a local release server."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import platform
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from on_api.core.errors import StartupError
from on_api.core.ipfs.daemon import binary
from on_api.core.ipfs.daemon.binary import cache_folder, kubo_binary
from on_api.core.ipfs.daemon.version import (
    KUBO_VERSION,
    TESTED_RANGE,
    Version,
    is_tested,
    is_too_old,
    parse_version,
)
from on_api.core.setting_groups import NodeSettings
from on_api.tests.testing.deadline import until

NOWHERE = "http://127.0.0.1:9"
"""A release site that nobody answers at."""


@pytest.mark.parametrize(
    ("text", "version", "tested", "too_old"),
    [
        ("0.43.0", Version(0, 43, 0), True, False),
        ("v0.43.7\n", Version(0, 43, 7), True, False),
        ("0.43.1+git", Version(0, 43, 1), True, False),
        ("0.43", Version(0, 43, 0), True, False),
        ("0.43.1-dev", Version(0, 43, 1, final=False), True, False),
        ("0.43.0-rc1", Version(0, 43, 0, final=False), False, True),
        ("0.42.9", Version(0, 42, 9), False, True),
        ("0.44.0-rc1", Version(0, 44, 0, final=False), False, False),
        ("0.44.0", Version(0, 44, 0), False, False),
        ("0.100.0", Version(0, 100, 0), False, False),
        ("1.0.0+a.b-c", Version(1, 0, 0), False, False),
        ("", None, False, True),
        ("0.43.0.1", None, False, True),
        ("kubo", None, False, True),
    ],
)
def test_versions(text: str, version: Version | None, tested: bool, too_old: bool) -> None:
    """Order and range, also of pre-releases and builds."""
    assert parse_version(text) == version
    assert is_tested(text) is tested
    assert is_too_old(text) is too_old


class Machine:
    """A PATH with nothing on it but what the test puts there, and an empty cache."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "bin"
        self.path.mkdir()
        self.cache = folder / "cache"
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        """Takes the place of the terminal."""
        self.lines.append(line)

    def script(self, path: Path, body: str) -> Path:
        """A program; only the shell's own words are there for it."""
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    def ipfs(self, version: str, path: Path | None = None) -> Path:
        """A program that calls itself Kubo of some version."""
        return self.script(path or self.path / "ipfs", f"echo {version}")

    def go(self, version: str = "1.26.8", build: str = "") -> None:
        """A Go whose build writes a Kubo; `build` runs before that."""
        self.script(
            self.path / "go",
            f"""
            if [ "$1" = env ]; then echo go{version}; exit; fi
            echo "$$" >> {self.notes}/pids
            echo "$PWD $GOPROXY $GOWORK $CGO_ENABLED $ON_API_SECRET_KEY" > {self.notes}/environment
            read -r module < go.mod; echo "$module" > {self.notes}/module
            [ -s go.sum ] || exit 3
            {build}
            while [ "$1" != -o ]; do shift; done
            printf '#!/bin/sh\\necho {KUBO_VERSION}\\n' > "$2"
            """,
        )

    def builds(self) -> list[int]:
        """The process ids of the builds that have begun."""
        pids = self.notes / "pids"
        return [int(pid) for pid in pids.read_text().split()] if pids.exists() else []

    def obtain(self, release_url: str = NOWHERE) -> Path:
        """What on-api does at its start, without ON_API_NODE__BINARY."""
        return kubo_binary(NodeSettings(), self.say, release_url=release_url)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """See `Machine`."""
    machine = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(machine.path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(machine.cache))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return machine


def test_the_program_that_is_set_comes_first(machine: Machine, tmp_path: Path) -> None:
    """Whatever is on PATH."""
    machine.ipfs("0.43.1")
    chosen = machine.ipfs("0.43.2+git", tmp_path / "mine")
    assert kubo_binary(NodeSettings(binary=chosen), machine.say) == chosen
    assert machine.lines == []


def test_a_newer_program_is_a_warning(machine: Machine, tmp_path: Path) -> None:
    """With both versions; it is used all the same, set or found."""
    chosen = machine.ipfs("0.50.0", tmp_path / "mine")
    assert kubo_binary(NodeSettings(binary=chosen), machine.say) == chosen
    found = machine.ipfs("0.51.0-rc1")
    assert machine.obtain() == found
    for line, version in zip(machine.lines, ("0.50.0", "0.51.0-rc1"), strict=True):
        assert version in line
        assert TESTED_RANGE in line


@pytest.mark.parametrize(
    ("body", "mode", "problem"),
    [
        (None, 0, "is not a file"),
        ("echo 0.43.0", 0o644, "is not executable"),
        ("echo 0.42.0", 0o755, "is Kubo 0.42.0, which is too old"),
        ("echo surprise", 0o755, "too old"),
        ("exit 1", 0o755, "does not work as Kubo"),
    ],
)
def test_a_set_program_that_can_not_be_used(
    machine: Machine, tmp_path: Path, body: str | None, mode: int, problem: str
) -> None:
    """Is an error with its reason: nothing else is tried in its place."""
    machine.ipfs("0.43.0")
    chosen = tmp_path / "mine"
    if body is not None:
        machine.script(chosen, body).chmod(mode)
    with pytest.raises(StartupError, match=problem) as raised:
        kubo_binary(NodeSettings(binary=chosen), machine.say)
    assert "ON_API_NODE__BINARY" in raised.value.details
    assert str(chosen) in raised.value.details


def test_an_old_program_on_path_is_passed_over(machine: Machine) -> None:
    """And said; the next way is taken."""
    old = machine.ipfs("0.29.0")
    machine.go()
    assert machine.obtain() == cache_folder() / "ipfs"
    assert str(old) in machine.lines[0]
    assert "0.29.0" in machine.lines[0]


def test_a_build(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """From our go.mod, with Go's own settings left alone; shown, kept, and done only once."""
    monkeypatch.setenv("GOPROXY", "https://proxy.example")
    monkeypatch.setenv("GOWORK", "/somewhere/go.work")
    monkeypatch.setenv("ON_API_SECRET_KEY", "s" * 32)
    monkeypatch.setattr(binary, "PROGRESS_SECONDS", 0.05)
    machine.go(build="/bin/sleep 0.3")
    program = machine.obtain()
    assert program == machine.cache / "on-api" / "kubo" / f"v{KUBO_VERSION}" / "ipfs"
    folder, *environment = (machine.notes / "environment").read_text().split()
    assert environment == ["https://proxy.example", "off", "0"]
    assert Path(folder).parent == program.parent
    assert (machine.notes / "module").read_text() == "module on-api/kubo\n"
    assert "minutes" in machine.lines[0]
    assert len([line for line in machine.lines if line.startswith("building Kubo: ")]) >= 2
    assert sorted(entry.name for entry in program.parent.iterdir()) == ["ipfs", "lock"]

    machine.lines.clear()
    (machine.path / "go").unlink()
    assert machine.obtain() == program
    assert machine.lines == []


def test_a_broken_program_in_the_cache_is_made_again(machine: Machine) -> None:
    """As a power cut can leave one."""
    machine.go()
    program = machine.obtain()
    program.write_text("")
    assert machine.obtain() == program
    assert len(machine.builds()) == 2


def test_two_at_once_build_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits, saying so, and uses what the first has built."""
    monkeypatch.setattr(binary, "PROGRESS_SECONDS", 0.05)
    machine.go(build="/bin/sleep 0.4")
    programs: list[Path] = []
    threads = [threading.Thread(target=lambda: programs.append(machine.obtain())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert programs == [cache_folder() / "ipfs"] * 3
    assert len(machine.builds()) == 1
    assert any("waiting for another on-api" in line for line in machine.lines)


def test_ctrl_c_ends_the_build(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compilers it has started, and nothing half-made is left."""
    monkeypatch.setattr(binary, "PROGRESS_SECONDS", 0.05)
    machine.go(build=f"/bin/sleep 60 & echo $! >> {machine.notes}/pids; wait")

    def interrupt(line: str) -> None:
        if line.startswith("building Kubo: ") and len(machine.builds()) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kubo_binary(NodeSettings(), interrupt)
    for pid in machine.builds():
        until(functools.partial(has_ended, pid), "the build has ended")
    assert [entry.name for entry in cache_folder().iterdir()] == ["lock"]


def test_killed_in_mid_build(machine: Machine, tmp_path: Path) -> None:
    """The next start builds from the beginning and clears up."""
    machine.go(build="exec /bin/sleep 60")
    code = (
        "from on_api.core.ipfs.daemon.binary import kubo_binary\n"
        "from on_api.core.setting_groups import NodeSettings\n"
        "kubo_binary(NodeSettings(), print)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as on_api:
        [pid] = until(machine.builds, "the build has begun")
        on_api.kill()
    try:
        assert len(list(cache_folder().glob("draft-*"))) == 1
        machine.go()
        program = machine.obtain()
        assert sorted(entry.name for entry in program.parent.iterdir()) == ["ipfs", "lock"]
    finally:
        os.kill(pid, signal.SIGKILL)


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or only its name is left."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return True


class Release:
    """A site like the official one."""

    def __init__(self, folder: Path, url: str) -> None:
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(
            platform.machine(), platform.machine()
        )
        self.url = url
        self.archive = (
            folder / f"kubo/v{KUBO_VERSION}/kubo_v{KUBO_VERSION}_{sys.platform}-{machine}.tar.gz"
        )
        self.archive.parent.mkdir(parents=True)

    def publish(self, *members: tuple[tarfile.TarInfo, bytes]) -> None:
        """Put up an archive of these members, with its sha512."""
        with tarfile.open(self.archive, "w:gz") as tar:
            for member, data in members:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        self.sign()

    def sign(self) -> None:
        """Write the sum of what the archive is now."""
        digest = hashlib.sha512(self.archive.read_bytes()).hexdigest()
        self.sum.write_text(f"{digest}  {self.archive.name}\n")

    @property
    def sum(self) -> Path:
        """The file with the sha512."""
        return self.archive.with_name(f"{self.archive.name}.sha512")


@pytest.fixture
def release(tmp_path: Path) -> Iterator[Release]:
    """See `Release`; without content."""
    folder = tmp_path / "site"

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield Release(folder, f"http://127.0.0.1:{server.server_address[1]}/")
        server.shutdown()
        thread.join()


def file(name: str, version: str = KUBO_VERSION) -> tuple[tarfile.TarInfo, bytes]:
    """A member that is a program calling itself Kubo."""
    return tarfile.TarInfo(name), f"#!/bin/sh\necho {version}\n".encode()


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """A member that is a symbolic link."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member, b""


@pytest.mark.parametrize("go", [None, "1.26.4", "1.9"])
def test_the_official_release(machine: Machine, release: Release, go: str | None) -> None:
    """When Go is missing or too old; one member is taken, whatever else is in the archive."""
    if go is not None:
        machine.go(go)
    release.publish(file("kubo/README.md"), file("../../evil"), file("kubo/ipfs"))
    program = machine.obtain(release.url)
    assert binary.program_version(program) == KUBO_VERSION
    assert sorted(entry.name for entry in program.parent.iterdir()) == ["ipfs", "lock"]
    assert not list(machine.cache.parent.rglob("evil"))
    assert machine.builds() == []
    assert machine.obtain(NOWHERE) == program


def spoil(release: Release) -> None:
    """Change one byte after the sum was made."""
    data = bytearray(release.archive.read_bytes())
    data[-1] ^= 1
    release.archive.write_bytes(data)


def cut(release: Release) -> None:
    """An archive that ends too soon, with a right sum."""
    release.archive.write_bytes(release.archive.read_bytes()[:-40])
    release.sign()


@pytest.mark.parametrize(
    ("members", "change", "reason"),
    [
        ([file("kubo/ipfs")], spoil, "SHA-512 hash .* does not match"),
        ([file("kubo/ipfs")], lambda release: release.sum.write_text(""), "does not match"),
        ([file("kubo/ipfs")], lambda release: release.sum.unlink(), "404"),
        ([file("kubo/ipfs")], cut, "could not be unpacked"),
        ([file("kubo/ipfs", "0.12.0")], None, "version 0.12.0"),
        ([link("kubo/ipfs", "/bin/sh")], None, "not a regular file"),
        ([file("ipfs")], None, "could not be unpacked"),
        ([], None, "could not be unpacked"),
    ],
)
def test_a_release_that_can_not_be_trusted(
    machine: Machine,
    release: Release,
    members: list[tuple[tarfile.TarInfo, bytes]],
    change: Callable[[Release], object] | None,
    reason: str,
) -> None:
    """Nothing of it stays, and the error says the cure."""
    release.publish(*members)
    if change is not None:
        change(release)
    with pytest.raises(StartupError, match=reason) as raised:
        machine.obtain(release.url)
    assert "ON_API_NODE__BINARY" in raised.value.details
    assert "Go is not installed" in raised.value.details
    assert [entry.name for entry in cache_folder().iterdir()] == ["lock"]


def test_a_failed_build_and_no_release(machine: Machine) -> None:
    """Both reasons, Go's own words among them, and the cure."""
    machine.go(build="echo 'go: no such module' >&2; exit 1")
    with pytest.raises(StartupError, match="go: no such module") as raised:
        machine.obtain()
    assert "could not be downloaded" in raised.value.details
    assert "install Go >= 1.26.5" in raised.value.details
    assert [entry.name for entry in cache_folder().iterdir()] == ["lock"]


def test_a_machine_without_a_release(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Says so."""
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    with pytest.raises(StartupError, match=r"no official release for .*pdp11"):
        machine.obtain()


def test_a_cache_that_can_not_be_written(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Names the variable that moves it; works for root too, whom no mode bits stop."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    machine.go()
    with pytest.raises(StartupError, match="XDG_CACHE_HOME"):
        machine.obtain()


def test_a_relative_cache_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the XDG specification asks."""
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "on-api" / "kubo" / f"v{KUBO_VERSION}"


def test_the_modules_of_the_build_are_committed() -> None:
    """Go's sums cover the module that is built, at the version that is expected."""
    folder = Path(binary.__file__).parent / "kubo_module"
    assert f"github.com/ipfs/kubo v{KUBO_VERSION}" in (folder / "go.mod").read_text()
    assert f"github.com/ipfs/kubo v{KUBO_VERSION} h1:" in (folder / "go.sum").read_text()
