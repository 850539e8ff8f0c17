"""The Kubo daemon that on-api runs itself: starting, restarting and stopping it.

Holds the lock on the home, the child process and the one thread that watches it. The program and
its repo are the business of `binary.py` and `repo.py`. Knows no asyncio and no service.
"""

from __future__ import annotations

import fcntl
import http.client
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from on_api.core.backoff import Backoff
from on_api.core.errors import StartupError
from on_api.core.ipfs.daemon import log_writer
from on_api.core.ipfs.daemon.binary import kubo_binary
from on_api.core.ipfs.daemon.leftover import LOOPBACK, ask, peer_id_at, stop_leftover
from on_api.core.ipfs.daemon.repo import gateway_socket, kubo_environment, peer_id_of, prepare_repo
from on_api.core.ipfs.daemon.whose import API_FILE, rpc_port_of
from on_api.core.setting_groups import MIB, NodeSettings

logger = logging.getLogger(__name__)

RESTARTS = Backoff(first=0.5, longest=30.0)

STEADY_AFTER_SECONDS = 60.0
"""Seconds of running after which failures are counted from 1 again."""

LOG_NAME = "node.log"
LOG_BYTES = 10 * MIB
"""Bytes of node.log at which it is renamed to node.log.1; see `log_writer.py`."""
LOG_FILES = 3
"""Older logs that are kept."""
LOG_NAMES = frozenset({LOG_NAME, *(f"{LOG_NAME}.{number}" for number in range(1, LOG_FILES + 1))})
"""Names in the home of the log and of older ones."""
LAST_WORDS_SECONDS = 5.0
"""Seconds to wait for the last lines of a Kubo that has ended to be written."""

_POLL_SECONDS = 0.05

# The empty file as an identity CID: every gateway can answer it without a block.
_EMPTY_FILE = "/ipfs/bafkqaaa"

# Linux only. Replaces itself by Kubo after asking the kernel to send it SIGTERM when the thread
# that started it ends (PR_SET_PDEATHSIG is 1), so that even a `kill -9` of on-api leaves no Kubo
# behind. A program of its own because a `preexec_fn` is not safe in a process with threads.
_TIED_TO_US = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("on-api ended before Kubo began")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ManagedNode:
    """One Kubo on loopback, with its repo in `home/ipfs`, kept running from `start()` to `stop()`.

    `rpc_auth` is the RPC secret like `bearer:TOKEN`; `say` shows a line to the person who waits.
    """

    def __init__(
        self, home: Path, settings: NodeSettings, rpc_auth: str, say: Callable[[str], None]
    ) -> None:
        self.home = home.absolute()
        self.repo = self.home / "ipfs"
        self.log = self.home / LOG_NAME
        self.on_restart: Callable[[], None] = lambda: None
        """Callback (quick, called by the watching thread) for when Kubo is up again after it had
        died."""
        self.restarts = 0
        """Number of times that Kubo was started again after it had died."""
        self._settings = settings
        self._rpc_auth = rpc_auth
        self._say = say
        self._peer_id = ""
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._log_writer: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._home_lock: int | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """Kubo's process id while it runs, else None."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def start(self) -> None:
        """Lock the home, prepare Kubo and start it. Returns when RPC and gateway answer.

        Raises `StartupError` with the remedy; then nothing is left running and the home is free.
        """
        if self._thread is not None:
            return
        self._stopping.clear()
        self._home_lock = _lock_home(self.home)
        try:
            stop_leftover(self.repo, self._rpc_auth, self._settings.shutdown_timeout, self._say)
            check_ports(self._settings)
            binary = kubo_binary(self._settings, self._say)
            prepare_repo(binary, self.repo, self._settings, self._rpc_auth)
            self._peer_id = peer_id_of(self.repo)
            started: Future[None] = Future()
            self._ended.clear()
            self._thread = threading.Thread(
                target=self._run, args=(binary, started), name="kubo", daemon=True
            )
            self._thread.start()
            started.result()
        except OSError as error:
            self.stop()
            raise _not_writable(self.home, error) from error
        except BaseException:  # Ctrl-C during a build, too
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the Kubo that was started here, and nothing else; release the home.

        Kubo gets `shutdown_timeout` seconds, or until a second Ctrl-C, and is killed after that.
        """
        with self._guard:
            self._stopping.set()
            process = self._process
        thread, self._thread = self._thread, None
        try:
            if process is not None:
                process.terminate()
            if thread is not None:
                # Not `join`: in Python 3.11 a Ctrl-C in it marks a thread that runs as ended.
                self._ended.wait(self._settings.shutdown_timeout)
        finally:
            if thread is not None and process is not None and not self._ended.is_set():
                logger.warning("Kubo (process %d) did not stop in time; killing it", process.pid)
                process.kill()
                self._ended.wait()
            if self._home_lock is not None:
                os.close(self._home_lock)
                self._home_lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self, binary: Path, started: Future[None]) -> None:
        """Run the thread: every Kubo is spawned here, because it is tied to the life of this
        thread."""
        try:
            self._launch(binary)
            started.set_result(None)
            self._keep_up(binary)
        except BaseException as error:
            if started.done():  # `start` has returned already
                raise
            started.set_exception(error)
        finally:
            self._wait_for_log()
            self._ended.set()

    def _keep_up(self, binary: Path) -> None:
        """Start Kubo again whenever it has died, until `stop` is called."""
        failures = 0
        while True:
            began = time.monotonic()
            self._wait_for_its_end()
            if time.monotonic() - began >= STEADY_AFTER_SECONDS:
                failures = 0
            up = False
            while not up:
                failures += 1
                if self._stopping.wait(RESTARTS.pause(failures)):
                    return
                up = self._relaunch(binary)

    def _relaunch(self, binary: Path) -> bool:
        self.restarts += 1
        try:
            self._launch(binary)
        except (StartupError, OSError) as error:
            if not self._stopping.is_set():
                logger.warning("Kubo could not be restarted: %s", error)
            return False
        logger.warning("Kubo is running again (restart %d)", self.restarts)
        self.on_restart()
        return True

    def _launch(self, binary: Path) -> None:
        """Spawn Kubo and wait until it answers; on failure stop it again."""
        process = self._spawn(binary)
        try:
            self._wait_until_ready(process)
        except BaseException:
            process.terminate()
            try:
                process.wait(self._settings.shutdown_timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise

    def _spawn(self, binary: Path) -> subprocess.Popen[bytes]:
        # Files of a killed Kubo: the next one refuses to bind its socket, and until it has written
        # its own address others would take the old one for it.
        for left in (gateway_socket(self.repo), self.repo / API_FILE):
            if left is not None:
                left.unlink(missing_ok=True)
        command = [str(binary), "daemon", "--migrate=true"]
        if sys.platform == "linux" and sys.executable:
            isolated = [sys.executable, "-I", "-S", "-c", _TIED_TO_US]
            command = [*isolated, str(os.getpid()), *command]
        with self._guard:
            if self._stopping.is_set():
                raise _stopped()
            with self.log.open("ab") as log:  # fails here, rather than in the writer
                self._log_start = log.tell()
            self._log_writer = writer = self._begin_log()
            with cast("IO[bytes]", writer.stdin) as log_end:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log_end,
                    stderr=subprocess.STDOUT,
                    env=kubo_environment(self.repo),
                    # A Ctrl-C in the terminal is for on-api, which still needs Kubo to finish.
                    start_new_session=True,
                )
            return self._process

    def _begin_log(self) -> subprocess.Popen[bytes]:
        self._wait_for_log()  # that of the Kubo before
        arguments = [str(self.log), str(LOG_BYTES), str(LOG_FILES)]
        return subprocess.Popen(
            [sys.executable, "-I", "-S", log_writer.__file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._settings.start_timeout
        while not self._answers():
            if process.poll() is not None:
                check_ports(self._settings)  # the likeliest reason; says which one
                msg = (
                    f"Kubo did not start ({self._last_words()}). See Kubo's log {self.log}; if"
                    f" the repo {self.repo} is damaged, restore it from a backup, or move it"
                    " away to start with an empty node."
                )
                raise StartupError(msg)
            if time.monotonic() >= deadline:
                msg = (
                    f"Kubo did not respond within {self._settings.start_timeout:g} s"
                    f" ({self._last_words()}): see its log {self.log}, or allow more time with"
                    " ON_API_NODE__START_TIMEOUT."
                )
                raise StartupError(msg)
            if self._stopping.wait(_POLL_SECONDS):
                raise _stopped()

    def _answers(self) -> bool:
        """Return whether RPC and gateway answer, and it is our node that does."""
        port = self._settings.rpc_port
        # Another process may have taken the port since: the secret is for our own child only.
        if rpc_port_of(self.repo) != port or peer_id_at(port, self._rpc_auth) != self._peer_id:
            return False
        answer = ask("GET", self._settings.gateway_port, _EMPTY_FILE)
        return answer is not None and answer[0] == http.HTTPStatus.OK

    def _wait_for_its_end(self) -> None:
        process = self._process
        if process is None:
            return
        code = process.wait()
        if not self._stopping.is_set():
            logger.warning("Kubo exited (code %d: %s)", code, self._last_words())

    def _wait_for_log(self) -> None:
        """Wait for the writer to end, if Kubo has."""
        process, writer = self._process, self._log_writer
        if writer is not None and (process is None or process.poll() is not None):
            with suppress(subprocess.TimeoutExpired):  # something else may hold the pipe
                writer.wait(LAST_WORDS_SECONDS)

    def _last_words(self) -> str:
        """Return the error that Kubo logged since its last start, else the log's last lines."""
        self._wait_for_log()
        try:
            with self.log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                start = self._log_start if self._log_start <= end else 0  # another file since
                log.seek(max(start, end - 16_384))
                lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
        except OSError:
            return "its log can't be read"
        lines = [line for line in lines if line]
        errors = [index for index, line in enumerate(lines) if line.startswith("Error:")]
        words = " ".join(lines[errors[-1] :] if errors else lines[-2:])
        return words[:500] or "it logged nothing"


def check_ports(settings: NodeSettings) -> None:
    """Raise `StartupError` naming the first port that Kubo could not listen on, and its setting."""
    wanted = [
        (LOOPBACK, settings.rpc_port, "ON_API_NODE__RPC_PORT (make run RPC_PORT=…)"),
        (LOOPBACK, settings.gateway_port, "ON_API_NODE__GATEWAY_PORT (make run GATEWAY_PORT=…)"),
    ]
    if settings.network == "public":
        wanted.append(("0.0.0.0", settings.swarm_port, "ON_API_NODE__SWARM_PORT"))  # noqa: S104 (a port for the world is what `public` asks for)
    for index, (address, port, setting) in enumerate(wanted):
        if port in [other for _, other, _ in wanted[:index]]:
            msg = f"Port {port} is configured twice: choose another port with {setting}."
            raise StartupError(msg)
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Kubo does
            try:
                listener.bind((address, port))
            except PermissionError as error:
                msg = (
                    f"This user is not permitted to use port {port}: choose another port with"
                    f" {setting}."
                )
                raise StartupError(msg) from error
            except OSError as error:
                msg = (
                    f"Port {port} is in use by another program: stop that program, or choose"
                    f" another port with {setting}."
                )
                raise StartupError(msg) from error


def check_home(home: Path) -> None:
    """Raise `StartupError` when another on-api runs in this home, or the home can't be written."""
    os.close(_lock_home(home.absolute()))


def _lock_home(home: Path) -> int:
    """Lock the home for this process. Returns the descriptor that holds the lock until it is
    closed.

    Raises `StartupError` when another on-api holds it, or the home can't be written.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Not inherited by Kubo, which may outlive us: the lock stands for on-api's life, not
        # Kubo's.
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _not_writable(home, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        msg = (
            f"Another on-api (process {holder}) is running in {home}:"
            " stop it, or set ON_API_HOME to another folder."
        )
        raise StartupError(msg) from error
    except OSError as error:
        os.close(descriptor)
        raise _not_writable(home, error) from error
    return descriptor


def _not_writable(home: Path, error: OSError) -> StartupError:
    return StartupError(
        f"Can't write to {home} ({error.strerror or error}): make it writable for this user,"
        " or set ON_API_HOME to another folder."
    )


def _stopped() -> StartupError:
    return StartupError("The IPFS node was stopped while it was starting.")
