"""A proxy before a Kubo's RPC that counts its calls and can hold any of them: the request before it
is passed on, or the answer once the node has given it all."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit


@dataclass
class Gate:
    """Holds what comes until `open`."""

    command: str
    holds_answer: bool
    _reached: threading.Event = field(default_factory=threading.Event)
    _opened: threading.Event = field(default_factory=threading.Event)

    def wait_until_reached(self, seconds: float = 30) -> None:
        """Return when something is held."""
        assert self._reached.wait(seconds), f"{self.command} did not come"

    def open(self) -> None:
        """Let go of what is held and of all that comes."""
        self._opened.set()

    def pass_through(self) -> None:
        """In the proxy's threads: be held."""
        self._reached.set()
        self._opened.wait(120)


@dataclass(frozen=True)
class Call:
    """One call that came: `pin/add` and its argument; there is one for each if it had several."""

    command: str
    argument: str


class RpcProxy:
    """Listens on `url`; passes everything on to the node's RPC at `target`, a connection a call."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (str(parts.hostname), int(parts.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.calls: list[Call] = []
        self._gates: list[Gate] = []
        self._cut: dict[str, bool] = {}
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, command: str, *, answer: bool = False) -> Gate:
        """Hold every later call of a command, or its answer, until the gate is opened."""
        gate = Gate(command, answer)
        self._gates.append(gate)
        return gate

    def cut(self, command: str, *, answer: bool = False) -> None:
        """From now on hang up on every call of a command: before the node hears of it, or when it
        has done it."""
        self._cut[command] = answer

    def mend(self) -> None:
        """Hang up on nothing more."""
        self._cut.clear()

    def count(self, command: str, argument: str) -> int:
        """How often a command came with this argument."""
        return self.calls.count(Call(command, argument))

    def close(self) -> None:
        """Take nothing more; let go of what is held."""
        for gate in self._gates:
            gate.open()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := client.recv(65536)):
                    return
                head += data
            line, _, rest = head.partition(b"\r\n")
            target = urlsplit(line.split(b" ")[1].decode())
            command = target.path.removeprefix("/api/v0/")
            arguments = parse_qs(target.query).get("arg", [""])
            self.calls += [Call(command, argument) for argument in arguments]
            if self._cut.get(command) is False:
                return
            gates = [gate for gate in self._gates if gate.command == command]
            for gate in gates:
                if not gate.holds_answer:
                    gate.pass_through()
            with socket.create_connection(self._target) as node:
                node.sendall(line + b"\r\nConnection: close\r\n" + rest)
                up = threading.Thread(target=_pass_on, args=(client, node), daemon=True)
                up.start()
                holding = [gate for gate in gates if gate.holds_answer]
                if self._cut.get(command):
                    _all_of(node)
                    client.shutdown(socket.SHUT_RDWR)  # the other thread reads from it still
                elif holding:
                    answer = _all_of(node)
                    for gate in holding:
                        gate.pass_through()
                    client.sendall(answer)
                else:
                    while data := node.recv(65536):
                        client.sendall(data)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        # The client is gone: so must the node see it.
        target.shutdown(socket.SHUT_WR)


def _all_of(source: socket.socket) -> bytes:
    answer = b""
    while data := source.recv(65536):
        answer += data
    return answer


@contextlib.contextmanager
def held_rpc(target: str) -> Iterator[RpcProxy]:
    """A proxy that is ended with the block."""
    proxy = RpcProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
