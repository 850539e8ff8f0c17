"""A TCP proxy in a thread that can be made to misbehave, between on-api and a server that it
uses."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum


class Mood(Enum):
    """The proxy's behaviour towards connections, old and new."""

    GOOD = "pass everything on"
    REFUSE = "accept and close at once; old ones are cut"
    HANG = "take everything, pass nothing on"
    CUT = "cut each answer after a few bytes"
    CUT_LATE = "cut each answer after a hundred thousand bytes"
    GARBAGE = "answer noise"
    SLOW = "answer late and in small pieces"
    LOSE_COMMITS = "cut instead of passing on that a transaction was committed"
    STOP_COMMITS = "cut instead of passing on that a transaction shall be committed"


NOISE = random.Random(0).randbytes(65536)
"""Fixed noise: a test must not depend on what random noise happens to mean."""

_PASSING = {Mood.GOOD, Mood.LOSE_COMMITS, Mood.STOP_COMMITS}


class _Answered:
    """Number of bytes of a connection's current answer; it is reset when the client sends."""

    size = 0


class TcpProxy:
    """Passes bytes between the clients of `port` and connections made by `dial`."""

    def __init__(self, dial: Callable[[], socket.socket]) -> None:
        self._dial = dial
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._good = threading.Event()
        self._good.set()
        self._mood = Mood.GOOD
        self._listening: set[socket.socket] = set()
        self._mute: set[socket.socket] = set()
        self._ended = False
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def mood(self) -> Mood:
        """Current behaviour."""
        return self._mood

    @mood.setter
    def mood(self, mood: Mood) -> None:
        self._mood = mood
        if mood is Mood.HANG:
            self._good.clear()
        else:
            self._good.set()
        if mood is Mood.REFUSE:
            self._cut_all()

    @property
    def connections(self) -> int:
        """Number of connections that pass through at the moment."""
        return len(self._open) // 2

    def mute_listeners(self) -> None:
        """Drop all data, in both directions, of connections that have sent a `LISTEN` before: they
        stay open and silent, as behind a router that has forgotten them."""
        self._mute |= self._listening

    def close(self) -> None:
        """Cut all connections, and stop."""
        self._ended = True
        self.mood = Mood.REFUSE
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(5)

    def _cut_all(self) -> None:
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._ended:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._mood is Mood.REFUSE:
                client.close()
                continue
            try:
                server = self._dial()
            except OSError:
                client.close()
                continue
            server.settimeout(None)  # the time-out was for dialling: an idle connection stays
            self._open |= {client, server}
            answered = _Answered()
            for source, target, spoil in (
                (client, server, False),
                (server, client, True),
            ):
                threading.Thread(
                    target=self._pass, args=(source, target, spoil, answered), daemon=True
                ).start()

    def _pass(
        self, source: socket.socket, target: socket.socket, spoil: bool, answered: _Answered
    ) -> None:
        try:
            while data := source.recv(65536):
                self._good.wait()
                answered.size = answered.size + len(data) if spoil else 0
                if b"LISTEN " in data:
                    self._listening |= {source, target}
                if source in self._mute:
                    continue
                stops = Mood.LOSE_COMMITS if spoil else Mood.STOP_COMMITS
                if self._mood is stops and b"COMMIT\0" in data:
                    return
                if not spoil or self._mood in _PASSING:
                    target.sendall(data)
                elif self._mood is Mood.CUT_LATE:
                    if answered.size > 100_000:
                        return
                    target.sendall(data)
                elif self._mood is Mood.CUT:
                    target.sendall(data[:7])
                    return
                elif self._mood is Mood.GARBAGE:
                    target.sendall(NOISE[: len(data)])
                else:
                    for start in range(0, len(data), 50):
                        time.sleep(0.005)  # slowness is what is tested
                        target.sendall(data[start : start + 50])
        except OSError:
            pass
        finally:
            for end in (source, target):
                self._open.discard(end)
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


@contextlib.contextmanager
def proxied(dial: Callable[[], socket.socket]) -> Iterator[TcpProxy]:
    """Run a proxy until the block ends."""
    proxy = TcpProxy(dial)
    try:
        yield proxy
    finally:
        proxy.close()
