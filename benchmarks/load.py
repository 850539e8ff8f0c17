"""Load generator: an HTTP client in a process of its own, the same for on-api and its counterparts.

`measure` starts one and waits for it; `python -m benchmarks.load` is that process. Every answer is
checked: its status, its length, and downloads byte by byte. Knows nothing of the servers.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import httpx
import uvloop

from benchmarks.bodies import Body

BOUNDARY = "a-boundary-that-no-random-byte-hits"
DEADLINE_SECONDS = 3600
KEPT_BYTES = 64 * 1024
"""Bytes kept of an answer in which a word is searched."""
_WRK_UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30}


class WrongAnswerError(RuntimeError):
    """Error: a server's answer is not the expected one, so no rate counts."""


@dataclass(frozen=True)
class Job:
    """`count` similar requests over `concurrency` connections.

    `body_bytes`: size of a fresh body, made of `seed` and the request's number; with `form` it is
    sent as a form's part `file`; without, `text` comes before it, always the same. Each answer must
    have `status`, hold the word `contains`, and its body must be `answer` from byte `answer_start`
    on, where these are given.
    """

    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    count: int = 1
    concurrency: int = 1
    seed: str = ""
    body_bytes: int | None = None
    form: bool = False
    text: str = ""
    targets: Sequence[str] = ()
    texts: Sequence[str] = ()
    """Path and text of each request, in place of those above."""
    status: int = 200
    refused: int | None = None
    """Another permitted status: such answers are counted, and not checked any further."""
    contains: str = ""
    answer: Body | None = None
    answer_start: int = 0
    answer_bytes: int | None = None
    """Expected length of each body, in bytes."""

    def fresh(self) -> Job:
        """Return the same job with other bytes."""
        return replace(self, seed=new_seed())


@dataclass(frozen=True)
class Load:
    """Result of a job: from the first byte sent to the last received, without connecting."""

    seconds: float
    per_second: float
    """Requests per second."""
    bytes_in: int
    median_ms: float
    p99_ms: float
    refused: int = 0


def measure(job: Job) -> Load:
    """Do a job in a process of its own. Raises `WrongAnswerError` if any answer is not the expected
    one."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise WrongAnswerError(f"{job.method} {job.url}: {done.stderr.strip()[-2000:]}")
    return Load(**json.loads(done.stdout))


def get_rate(
    url: str,
    headers: Mapping[str, str],
    expected: bytes,
    *,
    count: int,
    connections: int,
    seconds: int,
) -> tuple[float, int]:
    """Return GETs per second, and the number of GETs.

    Uses `wrk` for `seconds` if it is installed, since it leaves more of the machine to the server;
    else our own client, for `count` requests. wrk counts answers other than 2xx, broken connections
    and bytes received; the body itself is compared before and after. Raises `WrongAnswerError`.
    """
    _compare(url, headers, expected)
    if (wrk := shutil.which("wrk")) is None:
        job = Job(url, headers=headers, count=count, concurrency=connections)
        load = measure(job)
        if load.bytes_in != count * len(expected):
            raise WrongAnswerError(f"{url}: {load.bytes_in} bytes came in {count} answers")
        rate, requests = load.per_second, count
    else:
        rate, requests = _wrk(wrk, url, headers, len(expected), connections, seconds)
    _compare(url, headers, expected)
    return rate, requests


def _wrk(
    wrk: str, url: str, headers: Mapping[str, str], size: int, connections: int, seconds: int
) -> tuple[float, int]:
    given = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
    done = subprocess.run(
        [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", *given, url],
        capture_output=True,
        text=True,
        check=True,
    )
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    total = re.search(r"(\d+) requests in [\d.]+\w+, ([\d.]+)([KMG]?B) read", done.stdout)
    broken = "Non-2xx" in done.stdout or "Socket errors" in done.stdout
    if rate is None or total is None or broken:
        raise WrongAnswerError(f"wrk {url}: {done.stdout}")
    # wrk rounds to two decimals, and its bytes include the heads.
    read = float(total[2]) * _WRK_UNITS[total[3]]
    if not int(total[1]) or read < int(total[1]) * size * 0.99:
        raise WrongAnswerError(f"wrk {url}: too few bytes for so many answers: {done.stdout}")
    return float(rate[1]), int(total[1])


def _compare(url: str, headers: Mapping[str, str], expected: bytes) -> None:
    answer = httpx.get(url, headers=dict(headers), trust_env=False, timeout=60)
    if answer.status_code != 200 or answer.content != expected:
        raise WrongAnswerError(f"{url}: {answer.status_code}, {len(answer.content)} bytes")


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, one request at a time; received bodies are compared, not kept."""

    def __init__(self, job: Job) -> None:
        self.bytes_in = 0
        self.refused = 0
        self._job = job
        self._parser = httptools.HttpResponseParser(self)
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._answer: asyncio.Future[str | None]
        self._wrong: str | None = None
        self._length = 0
        self._kept = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is one, but does not inherit from `asyncio.Transport`.
        self._transport = cast(asyncio.Transport, transport)
        self._begin()

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
        job = self._job
        if job.answer is not None and not job.answer.holds(body, job.answer_start + self._length):
            self._wrong = self._wrong or f"wrong bytes near {job.answer_start + self._length}"
        if job.contains and self._length < KEPT_BYTES:
            self._kept += body
        self._length += len(body)

    def on_message_complete(self) -> None:
        job, status = self._job, self._parser.get_status_code()
        self._parser = httptools.HttpResponseParser(self)
        self.bytes_in += self._length
        if status == job.refused:
            self.refused += 1
        elif status != job.status:
            self._wrong = f"answered {status}, not {job.status}"
        elif job.contains.encode() not in self._kept:
            self._wrong = f"no {job.contains} in {bytes(self._kept[:500])!r}"
        elif job.answer_bytes not in {None, self._length}:
            self._wrong = f"{self._length} bytes came, not {job.answer_bytes}"
        self._answer.set_result(self._wrong)

    async def request(self, head: bytes, pieces: Iterator[bytes]) -> None:
        """Send a request, and wait for its whole answer. Raises `WrongAnswerError`."""
        self._begin()
        self._transport.write(head + next(pieces, b""))
        for piece in pieces:
            await self._may_write.wait()
            if self._answer.done():
                break  # refused in the middle
            self._transport.write(piece)
        if (wrong := await self._answer) is not None:
            raise WrongAnswerError(wrong)

    def _begin(self) -> None:
        self._answer = asyncio.get_running_loop().create_future()
        self._wrong = None
        self._length = 0
        self._kept = bytearray()


def _pieces(job: Job, number: int) -> Iterator[bytes]:
    before, after = _frame(job, number)
    if before:
        yield before
    if job.body_bytes:
        yield from Body(job.seed, number, job.body_bytes).pieces()
    if after:
        yield after


def _frame(job: Job, number: int) -> tuple[bytes, bytes]:
    if not job.form:
        return (job.texts[number] if job.texts else job.text).encode(), b""
    disposition = 'Content-Disposition: form-data; name="file"; filename="file"'
    kind = "Content-Type: application/octet-stream"
    before = f"--{BOUNDARY}\r\n{disposition}\r\n{kind}\r\n\r\n"
    return before.encode(), f"\r\n--{BOUNDARY}--\r\n".encode()


def _head(job: Job, number: int) -> bytes:
    parts = urlsplit(job.url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    target = job.targets[number] if job.targets else target
    headers = {"Host": parts.netloc, **job.headers}
    if job.body_bytes is not None:
        headers["Content-Length"] = str(job.body_bytes + sum(map(len, _frame(job, number))))
    if job.form:
        headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"
    lines = [f"{job.method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _run(job: Job) -> Load:
    parts = urlsplit(job.url)
    host, port = parts.hostname or "", parts.port or 80
    loop = asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(lambda: _Connection(job), host, port))[1]
        for _ in range(job.concurrency)
    ]
    turns = iter(range(job.count))
    milliseconds: list[float] = []

    async def work(connection: _Connection) -> None:
        for number in turns:
            began = time.perf_counter()
            await connection.request(_head(job, number), _pieces(job, number))
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
        refused=sum(connection.refused for connection in connections),
    )


def new_seed() -> str:
    """Return a seed for fresh bodies."""
    return os.urandom(16).hex()


def _read_job(document: dict[str, Any]) -> Job:
    answer = document.pop("answer")
    return Job(**document, answer=None if answer is None else Body(**answer))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(uvloop.run(_run(_read_job(json.load(sys.stdin)))))))
