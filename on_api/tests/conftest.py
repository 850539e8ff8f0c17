"""Fixtures for everyone: a real Kubo, both databases, real servers, and accounts of one's own.

Servers and the node live as long as the run; each test makes the users it needs, so that none sees
another's things.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from on_api.cli.lanes import chosen_lanes
from on_api.core.ipfs.daemon.process import ManagedNode
from on_api.core.models import Database, migrations
from on_api.core.server_settings import AuthSettings
from on_api.core.services.container import Services
from on_api.core.setting_groups import IpfsSettings, NodeSettings
from on_api.core.settings import Settings
from on_api.main import create_app
from on_api.tests.testing.deadline import until
from on_api.tests.testing.plain_http import NO_TLS
from on_api.tests.testing.postgres import running_postgres

RPC_SECRET = "bearer:a secret between the tests and their node"
PASSWORD = "correct horse battery staple"
FAST_SCRYPT = 10
"""log2 of the cost: the tests make hundreds of accounts."""


_options = {"fast_lanes": True}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--fast-lanes off`: the same tests of servers without them. `--dist-folder`: a folder with an
    sdist and a wheel to test; else they are built for the run."""
    parser.addoption("--fast-lanes", choices=("on", "off"), default="on")
    parser.addoption("--dist-folder", type=Path)


def pytest_configure(config: pytest.Config) -> None:
    """Choose the lanes. Give the tests' processes a Ctrl-C that works, and less work with garbage.

    A run in a script's background inherits SIGINT ignored, and so would all that it starts. A
    million objects live in such a process; to look through them as often as Python does by itself
    takes a tenth of its time.
    """
    _options["fast_lanes"] = config.getoption("--fast-lanes") == "on"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The one event loop that on-api runs on."""
    return "asyncio"


def free_port() -> int:
    """A loopback port that nobody uses at the moment.

    Below those that systems give to outgoing connections: one of the thousands that the tests make
    would else take it before it is used.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass(frozen=True)
class Kubo:
    """A running node, as settings."""

    home: Path
    ipfs: IpfsSettings


@pytest.fixture(scope="session")
def kubo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubo]:
    """A real Kubo, run by on-api's own code."""
    home = tmp_path_factory.mktemp("node")
    node = NodeSettings(rpc_port=free_port(), gateway_port=free_port())
    with ManagedNode(home, node, RPC_SECRET, print):
        yield Kubo(
            home,
            IpfsSettings(
                rpc_url=f"http://127.0.0.1:{node.rpc_port}",
                gateway_url=f"http://127.0.0.1:{node.gateway_port}",
                rpc_auth=SecretStr(RPC_SECRET),
            ),
        )


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real PostgreSQL that lives as long as the run."""
    with running_postgres(tmp_path_factory.mktemp("postgres")) as running:
        yield running.url


class DatabaseMaker:
    """Hands out fresh, migrated databases of one kind; each is a copy of one that was migrated
    once."""

    def __init__(self, folder: Path, postgres: str | None) -> None:
        self._folder = folder
        self._postgres = postgres
        self._numbers = itertools.count()
        self._template = self._url("template")
        if postgres is not None:
            self._run("CREATE DATABASE template")
        database = Database(make_settings(folder, self._template))
        migrations.upgrade(database)
        database.dispose()

    def __call__(self) -> str:
        """The URL of a new one."""
        name = f"on_api_{os.getpid()}_{next(self._numbers)}"
        if self._postgres is not None:
            self._run(f"CREATE DATABASE {name} TEMPLATE template")
        else:
            shutil.copy(self._folder / "template.db", self._folder / f"{name}.db")
        return self._url(name)

    def empty(self) -> str:
        """The URL of a new one without tables."""
        name = f"empty_{os.getpid()}_{next(self._numbers)}"
        if self._postgres is not None:
            self._run(f"CREATE DATABASE {name}")
        return self._url(name)

    def _url(self, name: str) -> str:
        if self._postgres is None:
            return f"sqlite:///{self._folder / name}.db"
        return make_url(self._postgres).set(database=name).render_as_string(hide_password=False)

    def _run(self, statement: str) -> None:
        url = (self._postgres or "").replace("postgresql://", "postgresql+psycopg2://")
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()


@pytest.fixture(scope="session")
def sqlite_database(tmp_path_factory: pytest.TempPathFactory) -> DatabaseMaker:
    """A maker of SQLite files."""
    return DatabaseMaker(tmp_path_factory.mktemp("sqlite"), None)


@pytest.fixture(scope="session")
def postgres_database(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> DatabaseMaker:
    """A maker of PostgreSQL databases."""
    return DatabaseMaker(tmp_path_factory.mktemp("postgresql"), postgres)


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def new_database(request: pytest.FixtureRequest) -> DatabaseMaker:
    """A maker of databases; every test that uses it runs once for each kind."""
    maker: DatabaseMaker = request.getfixturevalue(f"{request.param}_database")
    return maker


def make_settings(home: Path, database_url: str, **changes: object) -> Settings:
    """Settings of a server, with anything changed by name."""
    values: dict[str, object] = {
        "home": home,
        "database_url": SecretStr(database_url),
        "secret_key": SecretStr("a master secret that only the tests know"),
        "fast_lanes": _options["fast_lanes"],
        "auth": AuthSettings(scrypt_log_n=FAST_SCRYPT, passphrase_log_n=FAST_SCRYPT),
        **changes,
    }
    return Settings(_env_file=None, **values)  # type: ignore[arg-type]  # checked by Pydantic


@pytest.fixture
def settings_for(kubo: Kubo, tmp_path: Path) -> Callable[..., Settings]:
    """Settings for a database's URL, with the running node; anything may be changed by name."""

    def make(database_url: str, **changes: object) -> Settings:
        return make_settings(tmp_path, database_url, **{"ipfs": kubo.ipfs, **changes})

    return make


class Server:
    """A real uvicorn in a thread, and a way to look behind it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.app = create_app(settings)
        self.services: Services = self.app.state.services
        served, protocol = chosen_lanes(settings, self.app)
        self._server = uvicorn.Server(
            uvicorn.Config(
                served,
                http=protocol,
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
            )
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._numbers = itertools.count()

    def __enter__(self) -> Server:
        self._thread.start()
        until(lambda: self._server.started or not self._thread.is_alive(), "the server starts")
        if not self._server.started:
            self._listener.close()
            pytest.fail("the application refused to start")
        return self

    def __exit__(self, *_: object) -> None:
        self.begin_to_end()
        self._thread.join(30)
        self._listener.close()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._server.server_state.connections)

    def begin_to_end(self) -> None:
        """Tell the server to end, and don't wait for it."""
        self._server.should_exit = True

    def count(self, name: str, **labels: str) -> float:
        """Read a metric, summed over the labels that aren't given; 0 before its first sample."""
        lines = text_string_to_metric_families(self.services.metrics.exposition().decode())
        samples = [sample for family in lines for sample in family.samples if sample.name == name]
        return sum(each.value for each in samples if labels.items() <= each.labels.items())

    def _run(self) -> None:
        with contextlib.suppress(SystemExit):  # uvicorn's way to say that the lifespan failed
            self._server.run(sockets=[self._listener])

    def client(self, key: str | None = None, **options: object) -> httpx.Client:
        """A client; anonymous without a key."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=60,
            verify=NO_TLS,
            trust_env=False,
            **options,  # type: ignore[arg-type]
        )

    def new_user(self, *, admin: bool = False) -> Account:
        """A new account with a key that may do everything."""
        from on_api.core.services.accounts.audit import COMMAND_LINE
        from on_api.core.services.accounts.keys import KeyRequest, every_scope

        users, keys = self.services.users, self.services.keys
        password_hash = users.hash_password(PASSWORD)
        with self.services.database.session_scope() as session:
            user = users.create(
                session, f"user-{next(self._numbers)}", password_hash, COMMAND_LINE, is_admin=admin
            )
            request = KeyRequest(name="all", scopes=every_scope(user))
            _, key = keys.issue(session, user.id, request, COMMAND_LINE)
            return Account(str(user.id), user.username, key, self.client(key))


@dataclass(frozen=True)
class Account:
    """A user of the tests, with a client that speaks for them."""

    id: str
    username: str
    key: str
    client: httpx.Client

    def make_key(self, *scopes: str, **limits: object) -> str:
        """A narrower key."""
        answer = self.client.post(
            "/v1/keys", json={"name": "narrow", "scopes": list(scopes), **limits}
        )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["key"])

    def upload(self, data: bytes, name: str = "a file", **query: str) -> dict[str, object]:
        """A file, by PUT."""
        answer = self.client.put("/v1/files", params={"name": name, **query}, content=data)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())


@pytest.fixture(scope="session")
def server(
    new_database: DatabaseMaker, kubo: Kubo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server on each kind of database, shared by every test that doesn't break it."""
    settings = make_settings(tmp_path_factory.mktemp("home"), new_database(), ipfs=kubo.ipfs)
    with Server(settings) as running:
        yield running


@pytest.fixture
def alice(server: Server) -> Iterator[Account]:
    """Somebody."""
    account = server.new_user()
    with account.client:
        yield account


@pytest.fixture
def bob(server: Server) -> Iterator[Account]:
    """Somebody else."""
    account = server.new_user()
    with account.client:
        yield account


@pytest.fixture
def admin(server: Server) -> Iterator[Account]:
    """An administrator."""
    account = server.new_user(admin=True)
    with account.client:
        yield account


@pytest.fixture
def anonymous(server: Server) -> Iterator[httpx.Client]:
    """Nobody."""
    with server.client() as client:
        yield client
