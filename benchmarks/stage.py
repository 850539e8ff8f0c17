"""What the scenarios play on: on-api as its operator starts it, its own Kubo asked directly, a real
PostgreSQL; everything in a folder that is thrown away."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlencode

import httpx
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from benchmarks.load import Job
from on_api.core.ipfs.cid import ADD_OPTIONS
from on_api.core.ipfs.kubo import authorization
from on_api.core.ipfs.repo import rpc_auth_of
from on_api.core.settings import Settings
from on_api.tests.cli.processes import Home
from on_api.tests.conftest import free_port
from on_api.tests.deadline import until
from on_api.tests.nginx import ACCEL_LOG, nginx

SQLITE = "sqlite"
POSTGRESQL = "postgresql"
QUOTA = 10**15


@dataclass(frozen=True)
class Sizes:
    """How much of everything; a quick run tells that all works, not how fast it is."""

    pairs: int = 5
    large: int = 2**30
    """Bytes of a large file."""
    huge: int = 10 * 2**30
    """Bytes of the file whose memory is watched."""
    uploads: int = 1000
    """Small files in one round."""
    many: int = 500
    """Uploads at once whose memory is watched."""
    gets: int = 10_000
    pages: int = 200
    files: int = 1_000_000
    users: int = 1000


QUICK = Sizes(
    pairs=2,
    large=2**26,
    huge=2**28,
    uploads=200,
    many=60,
    gets=500,
    pages=20,
    files=20_000,
    users=100,
)


@dataclass(frozen=True)
class OnApi:
    """A serving process, its user (with a quota, so that it is watched), and the Kubo behind it."""

    home: Home
    pid: int
    key: str
    rpc_headers: dict[str, str]

    @property
    def headers(self) -> dict[str, str]:
        """What the user sends with each request."""
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def gateway(self) -> str:
        """Origin of Kubo's own gateway."""
        return f"http://127.0.0.1:{self.home.gateway_port}"

    def put(self, size: int, visibility: str = "public") -> Job:
        """Upload fresh bytes as a raw body."""
        url = f"{self.home.url}/v1/files?name=file&visibility={visibility}"
        return Job(url, "PUT", self.headers, body_bytes=size, expected=201)

    def post(self, size: int) -> Job:
        """Upload fresh bytes as a form."""
        url = f"{self.home.url}/v1/files"
        return Job(url, "POST", self.headers, body_bytes=size, form=True, expected=201)

    def raw_add(self, size: int) -> Job:
        """The same by Kubo alone: the same options, pinned under a name as ours are."""
        options = {**ADD_OPTIONS, "pin": "true", "pin-name": "benchmark", "progress": "false"}
        url = f"http://127.0.0.1:{self.home.rpc_port}/api/v0/add?{urlencode(options)}"
        return Job(url, "POST", self.rpc_headers, body_bytes=size, form=True)

    def pin(self, cid: str) -> Job:
        """Ask for a pin."""
        headers = {**self.headers, "Content-Type": "application/json"}
        text = json.dumps({"cid": cid, "name": "benchmark"})
        return Job(
            f"{self.home.url}/v1/pins", "POST", headers, body_bytes=0, text=text, expected=202
        )

    def content(self, visibility: str, **headers: str) -> Job:
        """Download the newest file of one visibility."""
        with self.home.client(self.key) as client:
            found = client.get("/v1/files", params={"visibility": visibility}).raise_for_status()
        url = f"{self.home.url}/v1/files/{found.json()['items'][0]['id']}/content"
        status = 206 if headers else 200
        return Job(url, headers={**self.headers, **headers}, expected=status)

    def upload(self, body: bytes) -> dict[str, str]:
        """One file, for what needs one; returns its metadata."""
        with self.home.client(self.key) as client:
            answer = client.put("/v1/files", params={"name": "file"}, content=body, timeout=600)
        answer.raise_for_status()
        return dict(answer.json())


@dataclass(frozen=True)
class Stage:
    """Where one scenario runs: its sizes, and its kind of database."""

    sizes: Sizes
    database: str
    postgres: str | None
    """URL of a PostgreSQL in which databases may be made."""

    @contextmanager
    def home(self) -> Iterator[Home]:
        """A fresh home with an initialised database."""
        with TemporaryDirectory(prefix="on-api-bench-") as folder:
            path = Path(folder) / "home"
            path.mkdir(mode=0o700)
            url = self._new_database()
            home = Home(path, {} if url is None else {"ON_API_DATABASE_URL": url})
            home.init()
            yield home

    @contextmanager
    def on_api(self, **settings: str) -> Iterator[OnApi]:
        """A fresh on-api, serving under further settings."""
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


@contextmanager
def behind(on_api: OnApi) -> Iterator[str]:
    """nginx under `deploy/nginx.conf` in front of on-api and its node, but without TLS. Yields its
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
    """How many answers nginx has fetched from the node by itself."""
    lines = (_nginx_folder(on_api) / ACCEL_LOG).read_text(encoding="utf-8").splitlines()
    return sum(" 200 " in line for line in lines)


@contextmanager
def bare_fastapi() -> Iterator[str]:
    """`bare.py` in one process of uvicorn, as on-api is in one. Yields its origin."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    options = ["--http", "httptools", "--no-access-log", "--log-level", "warning"]
    command = [sys.executable, "-m", "uvicorn", "benchmarks.bare:app", "--port", str(port)]
    process = subprocess.Popen([*command, *options])
    try:
        until(lambda: _status(url) == 404, "the bare application is up")
        yield url
    finally:
        process.terminate()
        process.wait(30)


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
