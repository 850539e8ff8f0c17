"""The stage of a scenario: on-api as its operator starts it, its own Kubo asked directly, a real
PostgreSQL; everything in a temporary folder."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlencode

import httpx
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from benchmarks.bodies import Body
from benchmarks.figures import Pids
from benchmarks.load import Job, WrongAnswerError, get_rate, new_seed
from on_api.core.ipfs.daemon.repo import rpc_auth_of
from on_api.core.ipfs.formats.cid import ADD_OPTIONS
from on_api.core.ipfs.kubo.control import authorization
from on_api.core.settings import Settings
from on_api.tests.conftest import free_port
from on_api.tests.testing.deadline import until
from on_api.tests.testing.nginx import ACCEL_LOG, nginx
from on_api.tests.testing.processes import Home

SQLITE = "sqlite"
POSTGRESQL = "postgresql"
QUOTA = 10**15
SMALL = 8 * 1024
MIB = 2**20
CONNECTIONS = 16


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run; a quick run shows that everything works, not how fast it is."""

    pairs: int = 5
    large: int = 2**30
    """Bytes of a large file."""
    huge: int = 10 * 2**30
    """Bytes of the file during which memory is watched."""
    uploads: int = 1000
    """Small files in one round."""
    seconds: int = 5
    """Seconds of each measurement by wrk."""
    gets: int = 10_000
    """Requests of each measurement without wrk."""
    pages: int = 200
    files: int = 1_000_000
    users: int = 1000
    at_once: int = 500
    """Uploads of 1 MiB at the same time."""
    idle: int = 300
    """Seconds of the measurement without requests."""


QUICK = Sizes(
    pairs=2,
    large=2**26,
    huge=2**28,
    uploads=200,
    seconds=1,
    gets=500,
    pages=20,
    files=20_000,
    users=100,
    at_once=100,
    idle=30,
)


@dataclass(frozen=True)
class Uploaded:
    """An uploaded file, and the bytes that it must have."""

    id: str
    cid: str
    body: Body


@dataclass(frozen=True)
class OnApi:
    """A serving on-api, its user (with a quota, so that quotas are checked), and its Kubo."""

    home: Home
    pid: int
    key: str
    rpc_headers: dict[str, str]

    def pids(self) -> dict[str, list[int]]:
        """Return the process ids of on-api and of the node."""
        node = self.home.kubo_pid()
        return {"on-api": [pid for pid in _family(self.pid) if pid != node], "node": [node]}

    def node_pids(self) -> dict[str, list[int]]:
        """Return the process id of the node alone, which does all the work of direct requests."""
        return {"node": [self.home.kubo_pid()]}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that the user sends with each request."""
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def gateway(self) -> str:
        """Origin of Kubo's own gateway."""
        return f"http://127.0.0.1:{self.home.gateway_port}"

    def put(self, size: int, visibility: str = "public") -> Job:
        """Return a job that uploads fresh bytes as a raw body."""
        url = f"{self.home.url}/v1/files?name=file&visibility={visibility}"
        job = Job(url, "PUT", self.headers, body_bytes=size, status=201)
        return replace(job, contains='"cid"')

    def post(self, size: int) -> Job:
        """Return a job that uploads fresh bytes as a form."""
        url = f"{self.home.url}/v1/files"
        job = Job(url, "POST", self.headers, body_bytes=size, form=True)
        return replace(job, status=201, contains='"cid"')

    def raw_add(self, size: int) -> Job:
        """Return the same upload to Kubo alone, with the same options, pinned under a name."""
        options = {**ADD_OPTIONS, "pin": "true", "pin-name": "benchmark", "progress": "false"}
        url = f"http://127.0.0.1:{self.home.rpc_port}/api/v0/add?{urlencode(options)}"
        job = Job(url, "POST", self.rpc_headers, body_bytes=size, form=True)
        return replace(job, contains='"Hash"')

    def pin(self, cid: str) -> Job:
        """Return a job that requests a pin."""
        headers = {**self.headers, "Content-Type": "application/json"}
        text = json.dumps({"cid": cid, "name": "benchmark"})
        job = Job(f"{self.home.url}/v1/pins", "POST", headers, body_bytes=0, text=text, status=202)
        return replace(job, contains='"requestid"')

    def content(self, file: Uploaded) -> Job:
        """Return a job that downloads a file from on-api."""
        url = f"{self.home.url}/v1/files/{file.id}/content"
        size = file.body.size
        return Job(url, headers=self.headers, answer=file.body, answer_bytes=size)

    def part(self, file: Uploaded, start: int, length: int) -> Job:
        """Return a job that downloads a range of a file, in bytes."""
        headers = {**self.headers, "Range": f"bytes={start}-{start + length - 1}"}
        job = replace(self.content(file), headers=headers, status=206)
        return replace(job, answer_start=start, answer_bytes=length)

    def upload(self, size: int, visibility: str = "public") -> Uploaded:
        """Upload one file of `size` random bytes."""
        body = Body(new_seed(), 0, size)
        with self.home.client(self.key) as client:
            answer = client.put(
                "/v1/files",
                params={"name": "file", "visibility": visibility},
                content=body.pieces(),
                headers={"Content-Length": str(size)},
                timeout=600,
            )
        file = answer.raise_for_status().json()
        return Uploaded(file["id"], file["cid"], body)

    def by_gateway(self, origin: str, file: Uploaded) -> Job:
        """Return a job that downloads a file by `/ipfs`, from on-api, the node or a proxy."""
        size = file.body.size
        return Job(f"{origin}/ipfs/{file.cid}", answer=file.body, answer_bytes=size)

    def require_recorded(self, files: int) -> None:
        """Raise `WrongAnswerError` unless the user has exactly `files` files."""
        with self.home.client(self.key) as client:
            count = client.get("/v1/files?limit=1").raise_for_status().json()["count"]
        if count != files:
            raise WrongAnswerError(f"{files} files were uploaded, {count} are recorded")


@dataclass(frozen=True)
class Stage:
    """Conditions of one scenario: its sizes, and its kind of database."""

    sizes: Sizes
    database: str
    postgres: str | None
    """URL of a PostgreSQL in which databases may be created."""
    processes: int = 1
    """Number of on-api's serving processes."""
    fast_lanes: bool = True

    @contextmanager
    def home(self) -> Iterator[Home]:
        """Create a fresh home with an initialised database."""
        with TemporaryDirectory(prefix="on-api-bench-") as folder:
            path = Path(folder) / "home"
            path.mkdir(mode=0o700)
            url = self._new_database()
            home = Home(path, {} if url is None else {"ON_API_DATABASE_URL": url})
            home.extra["ON_API_FAST_LANES"] = str(self.fast_lanes)
            if self.processes > 1:
                home.extra["ON_API_PROCESSES"] = str(self.processes)
            home.init()
            yield home

    @contextmanager
    def on_api(self, **settings: str) -> Iterator[OnApi]:
        """Run a fresh on-api with further settings."""
        with self.home() as home:
            home.extra.update(settings)
            yield from self._serving(home)

    def _serving(self, home: Home) -> Iterator[OnApi]:
        with home.serving() as process:
            yield OnApi(home, process.pid, _new_user(home), _rpc_headers(home))

    def _new_database(self) -> str | None:
        if self.postgres is None:
            return None
        name = f"bench_{uuid.uuid4().hex}"
        url = make_url(self.postgres).set(drivername="postgresql+psycopg2")
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return url.set(database=name).render_as_string(hide_password=False)

    def gets(self, url: str, headers: dict[str, str], expected: bytes) -> tuple[float, int]:
        """Return GETs per second, and the number of GETs. Raises `WrongAnswerError`."""
        count, seconds = self.sizes.gets, self.sizes.seconds
        options = {"count": count, "connections": CONNECTIONS, "seconds": seconds}
        return get_rate(url, headers, expected, **options)


@contextmanager
def behind(on_api: OnApi) -> Iterator[str]:
    """Run nginx under `deploy/nginx.conf` in front of on-api and its node, without TLS. Yields its
    origin."""
    front = f"127.0.0.1:{free_port()}"
    listen = {
        "listen 443 ssl http2;": f"listen {front};",
        "listen 80;": f"listen 127.0.0.1:{free_port()};",
    }
    folder = _nginx_folder(on_api)
    folder.mkdir()
    with nginx(folder, on_api.home.url, on_api.gateway, listen, accel=True):
        until(lambda: _status(f"http://{front}/healthz") == 200, "nginx answers")
        yield f"http://{front}"


def accelerated(on_api: OnApi) -> int:
    """Return how many answers nginx has fetched from the node itself."""
    lines = (_nginx_folder(on_api) / ACCEL_LOG).read_text(encoding="utf-8").splitlines()
    return sum(" 200 " in line for line in lines)


@contextmanager
def bare_fastapi(processes: int) -> Iterator[tuple[str, Pids]]:
    """Run `bare.py` in `processes` processes of uvicorn. Yields its origin, and its process ids."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    options = ["--http", "httptools", "--no-access-log", "--log-level", "warning"]
    options += ["--workers", str(processes)] if processes > 1 else []
    command = [sys.executable, "-m", "uvicorn", "benchmarks.bare:app", "--port", str(port)]
    process = subprocess.Popen([*command, *options])
    try:
        until(lambda: _status(url) == 404, "the bare application is up")
        yield url, lambda: {"bare": _family(process.pid)}
    finally:
        process.terminate()
        process.wait(30)


def _family(pid: int) -> list[int]:
    """Return the ids of a process and of all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def _nginx_folder(on_api: OnApi) -> Path:
    return on_api.home.path.parent / "nginx"


def _status(url: str) -> int | None:
    try:
        return httpx.get(url, trust_env=False).status_code
    except httpx.TransportError:
        return None


def _new_user(home: Home) -> str:
    with home.client((home.path / "admin.key").read_text().strip()) as admin:
        me = admin.get("/v1/users/me").raise_for_status().json()
        quota = {"storage_quota": QUOTA}
        admin.patch(f"/v1/users/{me['id']}", json=quota).raise_for_status()
        scopes = ["files:read", "files:write", "pins:read", "pins:write"]
        answer = admin.post("/v1/keys", json={"name": "benchmark", "scopes": scopes})
    return str(answer.raise_for_status().json()["key"])


def _rpc_headers(home: Home) -> dict[str, str]:
    settings = Settings(_env_file=None, home=home.path, secret_key=None)
    return {"Authorization": authorization(rpc_auth_of(settings.home / "ipfs")) or ""}
