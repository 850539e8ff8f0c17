"""The load: an HTTP client in a process of its own, the same for on-api and for whom it is compared
with.

`measure` starts one and waits for it; `python -m benchmarks.load` is that process. Knows nothing of
what it talks to.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools
import uvloop

PIECE_BYTES = 1024 * 1024
STAMP_BYTES = 16
BOUNDARY = "a-boundary-that-no-random-byte-hits"
DEADLINE_SECONDS = 3600


@dataclass(frozen=True)
class Job:
    """`count` like requests over `concurrency` connections. `body_bytes`: of a body that nobody has
    ever seen; `form`: sent as a form's part `file`; `text` comes before it, always the same."""

    url: str
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    count: int = 1
    concurrency: int = 1
    body_bytes: int | None = None
    form: bool = False
    text: str = ""
    expected: int = 200


@dataclass(frozen=True)
class Load:
    """What came of a job: from the first byte sent to the last received, connecting left out."""

    seconds: float
    per_second: float
    """Requests."""
    bytes_in: int
    median_ms: float
    p99_ms: float


def measure(job: Job) -> Load:
    """Do a job in a process of its own. Raises `RuntimeError` when any answer is not the expected
    one."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{job.method} {job.url}: {done.stderr.strip()[-2000:]}")
    return Load(**json.loads(done.stdout))


def get_rate(url: str, headers: dict[str, str], *, count: int, connections: int) -> float:
    """GETs per second: by `wrk` where it is installed, since it leaves more of the machine to the
    server; else by our own client, `count` of them."""
    if (wrk := shutil.which("wrk")) is None:
        return measure(Job(url, headers=headers, count=count, concurrency=connections)).per_second
    given = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
    done = subprocess.run(
        [wrk, "-t1", f"-c{connections}", "-d5s", *given, url],
        capture_output=True,
        text=True,
        check=True,
    )
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if rate is None or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise RuntimeError(f"wrk {url}: {done.stdout}")
    return float(rate[1])


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, one request at a time; bodies that come are only counted."""

    def __init__(self) -> None:
        self.bytes_in = 0
        self._parser = httptools.HttpResponseParser(self)
        self._may_write = asyncio.Event()
        self._may_write.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one in all but its ancestors.
        self._transport = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._may_write.set()
        if not self._answer.done():
            self._answer.set_exception(error or ConnectionError("closed before the answer's end"))

    def on_body(self, body: bytes) -> None:
        self.bytes_in += len(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self._parser = httptools.HttpResponseParser(self)
        self._answer.set_result(status)

    async def request(self, head: bytes, pieces: Iterator[bytes]) -> int:
        """Send one and wait for all of its answer; returns the status."""
        self._answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._transport.write(head + next(pieces, b""))
        for piece in pieces:
            await self._may_write.wait()
            if self._answer.done():
                break  # refused in the middle
            self._transport.write(piece)
        return await self._answer


def _pieces(job: Job, seed: bytes, numbers: Iterator[int]) -> Iterator[bytes]:
    """A body that was never sent before: random, and each piece stamped with a number of its own,
    so that no two blocks of any two bodies are equal."""
    left = job.body_bytes or 0
    before, after = _frame(job)
    if before:
        yield before
    while left > 0:
        size = min(left, PIECE_BYTES)
        yield (next(numbers).to_bytes(STAMP_BYTES, "big") + seed[STAMP_BYTES:size])[:size]
        left -= size
    if after:
        yield after


def _frame(job: Job) -> tuple[bytes, bytes]:
    if not job.form:
        return job.text.encode(), b""
    disposition = 'Content-Disposition: form-data; name="file"; filename="file"'
    kind = "Content-Type: application/octet-stream"
    before = f"--{BOUNDARY}\r\n{disposition}\r\n{kind}\r\n\r\n"
    return before.encode(), f"\r\n--{BOUNDARY}--\r\n".encode()


def _head(job: Job) -> bytes:
    parts = urlsplit(job.url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    headers = {"Host": parts.netloc, **job.headers}
    if job.body_bytes is not None:
        headers["Content-Length"] = str(job.body_bytes + sum(map(len, _frame(job))))
    if job.form:
        headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"
    lines = [f"{job.method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _run(job: Job) -> Load:
    parts = urlsplit(job.url)
    host, port = parts.hostname or "", parts.port or 80
    loop = asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(_Connection, host, port))[1] for _ in range(job.concurrency)
    ]
    seed, head = os.urandom(PIECE_BYTES), _head(job)
    stamps, turns = iter(range(sys.maxsize)), iter(range(job.count))
    milliseconds: list[float] = []

    async def work(connection: _Connection) -> None:
        for _ in turns:
            began = time.perf_counter()
            status = await connection.request(head, _pieces(job, seed, stamps))
            if status != job.expected:
                raise RuntimeError(f"answered {status}, not {job.expected}")
            milliseconds.append((time.perf_counter() - began) * 1000)

    started = time.perf_counter()
    async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(work(connection))
    seconds = time.perf_counter() - started
    milliseconds.sort()
    return Load(
        seconds=seconds,
        per_second=job.count / seconds,
        bytes_in=sum(connection.bytes_in for connection in connections),
        median_ms=milliseconds[len(milliseconds) // 2],
        p99_ms=milliseconds[len(milliseconds) * 99 // 100],
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(uvloop.run(_run(Job(**json.load(sys.stdin)))))))
