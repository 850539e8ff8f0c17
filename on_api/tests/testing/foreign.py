"""Imitations of external services: handwritten HTTP on loopback, answered by a function; all
requests are kept."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from on_api.core.net.outbound import Outbound
from on_api.core.setting_groups import ImportsSettings


@dataclass(frozen=True)
class Asked:
    """A request as it was received."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """An answer. `length` may be wrong; `pieces` are sent singly, `pause` seconds after each."""

    body: bytes = b""
    status: str = "200 OK"
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    pieces: Sequence[bytes] = ()
    pause: float = 0.0
    hangs: bool = False


def says(value: object, status: str = "200 OK", **headers: str) -> Reply:
    """Return a JSON answer."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(json.dumps(value).encode(), status, {"Content-Type": "application/json", **named})


HTML = Reply(b"<!doctype html><title>Sorry</title>", headers={"Content-Type": "text/html"})


class Service:
    """A running service. `url` has its port; `asked` holds all requests received."""

    def __init__(self, port: int, scheme: str) -> None:
        self.port = port
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.asked: list[Asked] = []

    def paths(self) -> list[str]:
        """Return the paths of all requests received."""
        return [each.path for each in self.asked]


@asynccontextmanager
async def service(
    answer: Callable[[Asked], Reply], tls: ssl.SSLContext | None = None
) -> AsyncIterator[Service]:
    """Serve until the block ends."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            asked = await _read(reader)
            running.asked.append(asked)
            await _write(writer, answer(asked))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    running = Service(port, "http" if tls is None else "https")
    try:
        yield running
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *fields = head.rstrip().split("\r\n")
    method, target, _ = line.split(" ")
    headers = {
        name.lower(): value.strip() for name, _, value in (each.partition(":") for each in fields)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    parts = urlsplit(target)
    return Asked(method, parts.path, dict(parse_qsl(parts.query)), headers, body)


async def _write(writer: asyncio.StreamWriter, reply: Reply) -> None:
    if reply.hangs:
        await asyncio.Event().wait()
    whole = [reply.body, *reply.pieces]
    length = sum(map(len, whole)) if reply.length is None else reply.length
    headers = {"Content-Length": str(length), "Connection": "close", **reply.headers}
    lines = [f"HTTP/1.1 {reply.status}", *(f"{name}: {text}" for name, text in headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + reply.body)
    for piece in reply.pieces:
        await writer.drain()
        await asyncio.sleep(reply.pause)
        writer.write(piece)
    await writer.drain()


def limits(**changes: object) -> ImportsSettings:
    """Return settings with short time-outs that allow loopback; `changes` override them."""
    values: dict[str, object] = {
        "allow_private": True,
        "connect_timeout": 5,
        "read_timeout": 5,
        "total_timeout": 20,
        "block_timeout": 5,
        "retries": 2,
        **changes,
    }
    return ImportsSettings.model_validate(values)


@asynccontextmanager
async def outbound(**changes: object) -> AsyncIterator[Outbound]:
    """Open an outbound client with `limits`, and hardly any pause between retries."""
    made = Outbound(limits(**changes), first_pause=0.01)
    try:
        yield made
    finally:
        await made.close()
