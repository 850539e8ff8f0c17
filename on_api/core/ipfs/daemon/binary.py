"""Kubo's program `ipfs`: found, else built, else downloaded from the official release.

Holds the search and the cache of programs, which is outside the checkout and has a folder for each
version. Knows nothing of repos and daemons. The environment's settings for Go's and HTTP's proxies
stay in force.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from on_api.core.errors import StartupError
from on_api.core.ipfs.daemon.version import KUBO_VERSION, TESTED_RANGE, is_tested, is_too_old
from on_api.core.setting_groups import MIB, NodeSettings

if TYPE_CHECKING:
    import httpx

Say = Callable[[str], None]
"""Callback that shows one line to the person who waits."""

RELEASE_URL = "https://dist.ipfs.tech"
"""The project's official release site."""

PROGRESS_SECONDS = 8.0
"""Seconds between two lines of progress."""

MAX_ARCHIVE_BYTES = 512 * MIB
MAX_PROGRAM_BYTES = 1024 * MIB
"""Upper bounds in bytes; the archive of 0.43.0 has about 60 MiB, the program 120."""

_MODULE = Path(__file__).with_name("kubo_module")
_PACKAGE = "github.com/ipfs/kubo/cmd/ipfs"
_GO_NEEDED = (1, 26, 5)
_GO_NEEDED_TEXT = ".".join(map(str, _GO_NEEDED))
_DRAFT_PREFIX = "draft-"
_CURE = (
    f"put an `ipfs` (Kubo) {TESTED_RANGE} on PATH or set ON_API_NODE__BINARY to one;"
    f" or install Go >= {_GO_NEEDED_TEXT}, with which on-api builds it;"
    f" or let this machine reach {RELEASE_URL}, from where on-api downloads the official release"
)


class _NotObtained(Exception):
    """One of the ways to get the program failed; the message says why. The next way is tried."""


def kubo_binary(settings: NodeSettings, say: Say, *, release_url: str = RELEASE_URL) -> Path:
    """Find Kubo's program, or build or download it once into the cache. Returns its absolute path.

    In this order: `settings.binary`; `ipfs` on PATH; the cached one; a build with Go; the official
    release from `release_url`. `say` gets a line every few seconds while that lasts (minutes for a
    build). Raises `StartupError` with the remedy when `settings.binary` can't be used or no way
    works.
    """
    if settings.binary is not None:
        return _explicit(settings.binary, say)
    on_path = _on_path(say)
    if on_path is not None:
        return on_path
    folder = cache_folder()
    program = folder / "ipfs"
    try:
        if not _is_wanted(program):
            with _alone_in(folder, say):
                if not _is_wanted(program):  # another process may have made it meanwhile
                    _obtain(program, say, release_url)
    except OSError as error:
        reason = error.strerror or error
        msg = (
            f"Can't store Kubo in {folder} ({reason}): set XDG_CACHE_HOME to a writable folder"
            " with enough space."
        )
        raise StartupError(msg) from error
    return program


def cache_folder() -> Path:
    """Return the folder of this version's program: `$XDG_CACHE_HOME/on-api/kubo/vVERSION`. Raises
    `StartupError` if there is no home folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG specification ignores relative ones
        try:
            base = Path.home() / ".cache"
        except RuntimeError as error:
            msg = (
                "There is no home folder to store Kubo in: set XDG_CACHE_HOME to a writable folder."
            )
            raise StartupError(msg) from error
    return base / "on-api" / "kubo" / f"v{KUBO_VERSION}"


def program_version(program: Path) -> str | None:
    """Return the answer of `ipfs version`, such as `0.43.0`; None when it can't be run."""
    try:
        answer = subprocess.run(
            [program, "version", "--number"],
            # A folder that doesn't exist: the answer is the program's own, not a daemon's.
            env={**inherited_environment(), "IPFS_PATH": str(program.parent / "no-repo")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def inherited_environment() -> dict[str, str]:
    """Return our environment for another program: without on-api's settings and secrets."""
    return {key: value for key, value in os.environ.items() if not key.startswith("ON_API_")}


def build_with_go(program: Path, say: Say) -> None:
    """Build Kubo from the committed go.mod and go.sum and put it at `program` when it is complete.

    Raises `_NotObtained` when Go is missing or too old, or when the build fails.
    """
    go = shutil.which("go")
    if go is None:
        raise _NotObtained("Go is not installed")
    version = _go_version(go, program.parent)
    if version is None or version < _GO_NEEDED:
        found = "?" if version is None else ".".join(map(str, version))
        raise _NotObtained(f"Go {found} is older than {_GO_NEEDED_TEXT}")
    say(f"building Kubo {KUBO_VERSION} with Go; this happens only once and takes 2 to 5 minutes")
    with _draft_folder(program.parent) as draft:
        for name in ("go.mod", "go.sum"):
            shutil.copyfile(_MODULE / name, draft / name)
        built = draft / "ipfs"
        command = [go, "build", "-mod=readonly", "-trimpath", "-o", str(built), _PACKAGE]
        code, output = _run_showing_time(command, draft, say)
        if code != 0:
            raise _NotObtained(f"the build with Go failed ({output})")
        _accept(built, program)


def download_release(program: Path, say: Say, release_url: str) -> None:
    """Download the official release, check its sha512 and put its program at `program`.

    Raises `_NotObtained` when there is none for this machine, or it can't be downloaded or trusted.
    """
    import httpx

    name = _archive_name()
    url = f"{release_url.rstrip('/')}/kubo/v{KUBO_VERSION}/{name}"
    say(f"downloading Kubo {KUBO_VERSION} from {url}")
    with _draft_folder(program.parent) as draft:
        archive = draft / name
        try:
            # A read timeout applies to each piece, not to the whole download.
            with httpx.Client(timeout=httpx.Timeout(30, connect=10)) as client:
                expected = client.get(f"{url}.sha512").raise_for_status().text.split()[:1]
                actual = _download(client, url, archive, say)
        except httpx.HTTPError as error:
            raise _NotObtained(f"the official release could not be downloaded ({error})") from error
        if expected != [actual]:
            raise _NotObtained("the SHA-512 hash of the official release does not match")
        unpacked = draft / "ipfs"
        _extract_program(archive, unpacked)
        _accept(unpacked, program)


def _explicit(binary: Path, say: Say) -> Path:
    program = binary.expanduser().absolute()
    problem = None
    if not program.is_file():
        problem = "is not a file"
    elif not os.access(program, os.X_OK):
        problem = "is not executable"
    elif (version := program_version(program)) is None:
        problem = "does not work as Kubo (`ipfs version` fails)"
    elif is_too_old(version):
        problem = f"is Kubo {version}, which is too old for on-api"
    elif not is_tested(version):
        _warn_untested(program, version, say)
    if problem is not None:
        msg = (
            f"ON_API_NODE__BINARY: {program} {problem}: set it to an `ipfs` {TESTED_RANGE},"
            " or leave it unset to have one found or built."
        )
        raise StartupError(msg)
    return program


def _on_path(say: Say) -> Path | None:
    """Return `ipfs` on PATH if it is new enough. An older one is no error: there are other ways."""
    found = shutil.which("ipfs")
    if found is None:
        return None
    program = Path(found).absolute()
    version = program_version(program)
    if version is None or is_too_old(version):
        say(f"not using {program}: {f'Kubo {version} is too old' if version else 'does not run'}")
        return None
    if not is_tested(version):
        _warn_untested(program, version, say)
    return program


def _warn_untested(program: Path, version: str, say: Say) -> None:
    say(f"warning: {program} is Kubo {version}; on-api was tested with {TESTED_RANGE}")


def _is_wanted(program: Path) -> bool:
    return os.access(program, os.X_OK) and program_version(program) == KUBO_VERSION


def _obtain(program: Path, say: Say, release_url: str) -> None:
    """Try the build, then the release. Raises `StartupError` with both reasons and the remedy."""
    for stale in program.parent.glob(f"{_DRAFT_PREFIX}*"):  # of a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    try:
        build_with_go(program, say)
    except _NotObtained as no_build:
        say(f"{no_build}; trying the official release")
        try:
            download_release(program, say, release_url)
        except _NotObtained as no_release:
            msg = f"There is no Kubo to run ({no_build}; {no_release}). Three ways to one: {_CURE}."
            raise StartupError(msg) from no_release


@contextmanager
def _alone_in(folder: Path, say: Say) -> Iterator[None]:
    """Hold the folder's lock, so that one of several processes builds while the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        shown = -PROGRESS_SECONDS
        began = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                elapsed = time.monotonic() - began
                if elapsed - shown >= PROGRESS_SECONDS:
                    shown = elapsed
                    say(f"waiting for another on-api that is building Kubo ({elapsed:.0f} s)")
                time.sleep(0.2)
        yield


@contextmanager
def _draft_folder(parent: Path) -> Iterator[Path]:
    draft = Path(tempfile.mkdtemp(prefix=_DRAFT_PREFIX, dir=parent))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _accept(made: Path, program: Path) -> None:
    """Move a new program to its place, atomically, once it has run and reported the right
    version."""
    made.chmod(0o755)
    version = program_version(made)
    if version != KUBO_VERSION:
        raise _NotObtained(f"the new program reports version {version} instead of {KUBO_VERSION}")
    made.replace(program)


def _go_version(go: str, folder: Path) -> tuple[int, int, int] | None:
    try:
        answer = subprocess.run(
            [go, "env", "GOVERSION"],
            cwd=folder,  # not in a project that selects another toolchain
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    form = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?", answer.stdout.strip())
    return (int(form[1]), int(form[2]), int(form[3] or 0)) if form else None


def _run_showing_time(command: list[str], folder: Path, say: Say) -> tuple[int, str]:
    """Run the build in `folder`. Returns its exit code and the last line that it wrote."""
    # The build is for this machine and needs no C compiler, whatever else Go is used for here.
    dropped = {"GOOS", "GOARCH", "GOWORK"}
    environment = {k: v for k, v in inherited_environment().items() if k not in dropped}
    environment.setdefault("CGO_ENABLED", "0")
    log = folder / "build.log"
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "GOWORK": "off"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its compilers can be ended with it
        )
        try:
            while True:
                try:
                    code = process.wait(PROGRESS_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    say(f"building Kubo: {time.monotonic() - began:.0f} s")
        except BaseException:  # Ctrl-C in particular: leave nothing running
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    if code == 0:
        say(f"built Kubo in {time.monotonic() - began:.0f} s")
    return code, lines[-1] if lines else f"exit code {code}"


def _archive_name() -> str:
    machines = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
    machine = machines.get(platform.machine().lower())
    if sys.platform not in {"linux", "darwin"} or machine is None:
        where = f"{sys.platform}/{platform.machine()}"
        raise _NotObtained(f"there is no official release for {where}")
    return f"kubo_v{KUBO_VERSION}_{sys.platform}-{machine}.tar.gz"


def _download(client: httpx.Client, url: str, target: Path, say: Say) -> str:
    """Stream `url` into `target`. Returns the sha512 of the received bytes, in hex. Raises
    `_NotObtained` above `MAX_ARCHIVE_BYTES` bytes."""
    digest = hashlib.sha512()
    size = 0
    shown = time.monotonic()
    with client.stream("GET", url) as response, target.open("wb") as file:
        response.raise_for_status()
        for piece in response.iter_raw(MIB):
            size += len(piece)
            if size > MAX_ARCHIVE_BYTES:
                raise _NotObtained("the official release is larger than plausible")
            digest.update(piece)
            file.write(piece)
            if time.monotonic() - shown >= PROGRESS_SECONDS:
                shown = time.monotonic()
                say(f"downloading Kubo: {size // MIB} MiB")
    return digest.hexdigest()


def _extract_program(archive: Path, target: Path) -> None:
    """Extract the one member that is the program; paths, links and modes of the archive are not
    used."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            member = tar.getmember("kubo/ipfs")
            source = tar.extractfile(member) if member.isreg() else None
            if source is None or member.size > MAX_PROGRAM_BYTES:
                raise _NotObtained("`kubo/ipfs` in the official release is not a regular file")
            with target.open("wb") as file:
                shutil.copyfileobj(source, file, MIB)
    except (KeyError, EOFError, tarfile.TarError, zlib.error, OSError) as error:
        raise _NotObtained(f"the official release could not be unpacked ({error})") from error
