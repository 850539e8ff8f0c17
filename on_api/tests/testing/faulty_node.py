"""A Kubo that misbehaves on purpose: handwritten HTTP on loopback, one behaviour for each path."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from on_api.core.setting_groups import IpfsSettings
from on_api.core.settings import Settings

Exchange = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Handler of one request: gets its head, and the two ends of the connection."""


def says(
    body: bytes, *, status: str = "200 OK", length: int | None = None, headers: str = ""
) -> Exchange:
    """Read the whole request, and answer this. `length` may be wrong."""

    async def exchange(
        head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await read_body(head, reader)
        announced = len(body) if length is None else length
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Length: {announced}\r\n{headers}"
            "Content-Type: application/json\r\nConnection: close\r\n\r\n".encode()
            + body
        )
        await writer.drain()

    return exchange


def says_with_trailer(body: bytes, error: str) -> Exchange:
    """Answer 200 and report an error as Kubo does: in a trailer, after a regular end."""

    async def exchange(
        head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await read_body(head, reader)
        writer.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Stream-Error\r\n"
            b"Content-Type: application/json\r\nConnection: close\r\n\r\n"
        )
        if body:
            writer.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")
        writer.write(f"0\r\nX-Stream-Error: {error}\r\n\r\n".encode())
        await writer.drain()

    return exchange


def says_at_once(body: bytes, *, status: str) -> Exchange:
    """Answer before the request's body has been read, and close the connection."""

    async def exchange(
        _head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode()
            + body
        )
        await writer.drain()

    return exchange


async def hangs(_head: bytes, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Read everything, answer nothing."""
    while await reader.read(65536):
        pass


async def reads_nothing(
    _head: bytes, _reader: asyncio.StreamReader, _writer: asyncio.StreamWriter
) -> None:
    """Neither read nor answer."""
    await asyncio.Event().wait()


async def hangs_up(
    _head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Close without an answer."""
    writer.close()


def begins_and_hangs(body: bytes, *, length: int, headers: str = "", status: str) -> Exchange:
    """Answer correctly at first, then stall."""

    async def exchange(
        head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await says(body, status=status, length=length, headers=headers)(head, reader, writer)
        await asyncio.Event().wait()

    return exchange


def line(**fields: object) -> bytes:
    """Return one NDJSON object."""
    return json.dumps(fields).encode() + b"\n"


async def read_body(head: bytes, reader: asyncio.StreamReader) -> None:
    """Read a chunked request body, or none: on-api's client sends no other kind."""
    while b"chunked" in head.lower():
        size = int(await reader.readuntil(b"\r\n"), 16)
        await reader.readexactly(size + 2)
        if size == 0:
            break


@asynccontextmanager
async def faulty_node(paths: dict[str, Exchange]) -> AsyncIterator[Settings]:
    """Serve paths, given by prefix; yield settings with short time-outs."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1].decode()
            exchange = next(e for prefix, e in paths.items() if path.startswith(prefix))
            await exchange(head, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield Settings(
            _env_file=None,
            ipfs=IpfsSettings(
                rpc_url=url,
                gateway_url=url,
                connect_timeout=0.5,
                control_timeout=0.5,
                stall_timeout=0.5,
                finish_timeout=0.5,
            ),
        )
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
