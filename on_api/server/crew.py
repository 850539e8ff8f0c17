"""Several serving processes of one `on-api serve`: started together, restarted when one ends, ended
together (ADR 0018).

Each is a program of its own (`cli/member.py`), tied to this process by a socket. It sends there
that it is up, receives that the node was restarted, and ends when the other end is closed, however
this process has ended.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from on_api.core.backoff import Backoff
from on_api.core.errors import StartupError

logger = logging.getLogger(__name__)

RESTARTS = Backoff(first=0.2, longest=30.0)
STEADY_AFTER_SECONDS = 60.0
"""Seconds up after which a process's count of failures begins anew."""
PATIENCE_SECONDS = 15.0
"""Seconds beyond `GRACE_SECONDS` that ending processes are waited for before they are killed."""

UP = b"u"
NODE_RESTARTED = b"r"


@dataclass(eq=False)
class _Member:
    """A slot of the crew, and the process that has it at the moment."""

    number: int
    listener: socket.socket
    """Kept open here too: connections not yet accepted by a process that died go to its
    successor."""
    process: subprocess.Popen[bytes] | None = None
    line: socket.socket | None = None
    is_up: bool = False
    began: float = 0.0
    failures: int = 0
    """Consecutive ends and failed starts."""
    due: float = 0.0
    """Time of the next start, on the clock of `time.monotonic`."""


class Crew:
    """One process for each listener, all with the same extra `environment`."""

    def __init__(self, listeners: Sequence[socket.socket], environment: Mapping[str, str]) -> None:
        self._members = [_Member(number, each) for number, each in enumerate(listeners)]
        self._environment = {**os.environ, **environment}
        self._selector = selectors.DefaultSelector()
        self._was_up = False

    def run(self) -> None:
        """Keep the processes up until Ctrl-C or SIGTERM, then end them. Raises `StartupError` when
        one can't start while none has ever been up."""
        try:
            while True:
                self._start_due()
                self._hear()
        except KeyboardInterrupt:
            pass
        finally:
            self._end()

    def node_restarted(self) -> None:
        """Tell the process that works on pins. May be called from any thread."""
        line = self._members[0].line
        if line is not None:
            with suppress(OSError):  # it has just died: its successor looks by itself
                line.send(NODE_RESTARTED, socket.MSG_DONTWAIT)

    def _start_due(self) -> None:
        now = time.monotonic()
        for member in self._members:
            if member.process is None and now >= member.due:
                self._start(member)

    def _start(self, member: _Member) -> None:
        try:
            self._launch(member)
        except OSError as error:
            # No descriptor, process or memory is free now: the others go on serving.
            if not self._was_up:
                raise StartupError(f"The API could not start: {error.strerror}.") from error
            member.is_up = False
            pause = self._put_off(member)
            logger.warning(
                "could not start API process %d (%s); retrying in %.1f s",
                member.number,
                error.strerror,
                pause,
            )

    def _launch(self, member: _Member) -> None:
        ours, theirs = socket.socketpair()
        given = (member.listener.fileno(), theirs.fileno())
        # -P: never import from the folder that we were started in.
        program = [sys.executable, "-P", "-m", "on_api.cli.member"]
        try:
            self._selector.register(ours, selectors.EVENT_READ, member)
            member.process = subprocess.Popen(
                [*program, str(member.number), *map(str, given)],
                stdin=subprocess.DEVNULL,
                env=self._environment,
                pass_fds=given,
                # A Ctrl-C in the terminal is for this process, which then ends the others.
                start_new_session=True,
            )
        except BaseException:
            with suppress(KeyError):
                self._selector.unregister(ours)
            ours.close()
            raise
        finally:
            theirs.close()
        member.line, member.is_up, member.began = ours, False, time.monotonic()

    def _hear(self) -> None:
        due = [member.due for member in self._members if member.process is None]
        wait = max(0.0, min(due) - time.monotonic()) if due else None
        for key, _ in self._selector.select(wait):
            member: _Member = key.data
            try:
                received = member.line.recv(64) if member.line is not None else b""
            except ConnectionError:
                received = b""
            if received:
                member.is_up = self._was_up = True
            else:
                self._has_ended(member)

    def _has_ended(self, member: _Member) -> None:
        code = self._let_go(member)
        if not self._was_up:
            raise StartupError("The API could not start; see the log above for the reason.")
        if member.is_up and time.monotonic() - member.began >= STEADY_AFTER_SECONDS:
            member.failures = 0
        pause = self._put_off(member)
        logger.warning(
            "API process %d ended (exit code %s); restarting it in %.1f s",
            member.number,
            code,
            pause,
        )

    def _put_off(self, member: _Member) -> float:
        """Schedule the next start after a pause, and return the pause in seconds."""
        member.failures += 1
        pause = RESTARTS.pause(member.failures)
        member.due = time.monotonic() + pause
        return pause

    def _let_go(self, member: _Member) -> int | None:
        """Close the line of a process and kill it: it is dead, or can't be controlled any more.
        Return its exit code."""
        process, member.process = member.process, None
        if member.line is not None:
            self._selector.unregister(member.line)
            member.line.close()
            member.line = None
        if process is None:
            return None
        process.kill()
        return process.wait()

    def _end(self) -> None:
        """Accept no new connections, and end all processes; transfers may finish in time."""
        from on_api.server.serving import GRACE_SECONDS

        for member in self._members:
            member.listener.close()
        running = [member.process for member in self._members if member.process is not None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS + PATIENCE_SECONDS
        try:
            for process in running:
                process.wait(max(0.0, deadline - time.monotonic()))
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            logger.warning("not all API processes have stopped in time; killing them")
        for member in self._members:
            self._let_go(member)
        self._selector.close()
