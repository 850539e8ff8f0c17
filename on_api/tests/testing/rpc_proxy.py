"""A proxy for a Kubo's RPC that counts calls and can hold any of them: the request before it is
passed on, or the answer once the node has sent all of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit


@dataclass
class Gate:
    """Barrier that holds calls until `open`."""

    command: str
    holds_answer: bool
    _reached: threading.Event = field(default_factory=threading.Event)
    _opened: threading.Event = field(default_factory=threading.Event)

    def wait_until_reached(self, seconds: float = 30) -> None:
        """Wait until a call is held."""
        assert self._reached.wait(seconds), f"{self.command} did not come"

    def open(self) -> None:
        """Release the held calls, and let later ones pass."""
        self._opened.set()

    def pass_through(self) -> None:
        """Hold the calling thread, one of the proxy's."""
        self._reached.set()
        self._opened.wait(120)


@dataclass(frozen=True)
class Call:
    """One call: a command such as `pin/add`, and its argument; calls with several arguments count
    once for each."""

    command: str
    argument: str


class RpcProxy:
    """Proxy that listens on `url` and passes calls to the RPC at `target`, one connection each."""

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
        """Hold all later calls of a command, or their answers, until the gate is opened."""
        gate = Gate(command, answer)
        self._gates.append(gate)
        return gate

    def cut(self, command: str, *, answer: bool = False) -> None:
        """Close the connection of every later call of a command: before the node gets it, or after
        the node has done it."""
        self._cut[command] = answer

    def mend(self) -> None:
        """Undo all `cut`."""
        self._cut.clear()

    def count(self, command: str, argument: str) -> int:
        """Return how often a command was called with this argument."""
        return self.calls.count(Call(command, argument))

    def close(self) -> None:
        """Accept no more calls, and release the held ones."""
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
                    client.shutdown(socket.SHUT_RDWR)  # the other thread still reads from it
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
        # The client is gone: the node must see that too.
        target.shutdown(socket.SHUT_WR)


def _all_of(source: socket.socket) -> bytes:
    answer = b""
    while data := source.recv(65536):
        answer += data
    return answer


@contextlib.contextmanager
def held_rpc(target: str) -> Iterator[RpcProxy]:
    """Run a proxy until the block ends."""
    proxy = RpcProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
