"""Diagnosis: the known problems, each with its cure, as `on-api doctor` prints them."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

import on_api
from on_api.core.errors import OnApiError, StartupError, WrongNode
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.settings import Settings

SWAGGER_FOLDER = Path(on_api.__file__).parent / "public" / "static"
SWAGGER_FILES = ("swagger-ui-bundle.js", "swagger-ui.css")
_START_IT = "start it: `on-api serve` or `on-api node run`"
CLOCKS_DIFFER_SECONDS = 5.0
"""Seconds between this machine's clock and the database's that cause a warning."""
WEAK_BELOW_CHARACTERS = 10
"""Fewest different characters of a master secret given by hand that cause no warning."""


class Severity(StrEnum):
    """Severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True)
class Diagnosis:
    """Result of one check, with its cure."""

    name: str
    verdict: Severity
    details: str
    cure: str | None = None


def diagnose(settings: Settings) -> Sequence[Diagnosis]:
    """Run all checks. A check that can't be made is a finding too."""
    looks: dict[str, Callable[[Settings], Iterator[Diagnosis]]] = {
        "pycryptodome": _crypto,
        "encryption": _encryption,
        "master secret": _secret,
        "database": _database,
        "instance": _instance,
        "node": _node,
        "gateway": _gateway,
        "node's settings": node_settings,
        "ports": _ports,
        "Swagger UI": swagger,
    }
    findings: list[Diagnosis] = []
    for name, look in looks.items():
        try:
            findings += look(settings)
        except OnApiError as error:
            findings.append(Diagnosis(name, Severity.BROKEN, error.details))
    return findings


def _crypto(_settings: Settings) -> Iterator[Diagnosis]:
    name = "pycryptodome"
    cure = "pip uninstall -y pycrypto && pip install --force-reinstall --no-deps pycryptodome"
    try:
        metadata.distribution("pycrypto")
    except metadata.PackageNotFoundError:
        yield Diagnosis(name, Severity.OK, metadata.version(name))
    else:
        yield Diagnosis(
            name, Severity.BROKEN, "pycrypto is also installed and overwrites its files", cure
        )


def _encryption(_settings: Settings) -> Iterator[Diagnosis]:
    from on_api.core.crypto import aead

    yield Diagnosis(
        "encryption", Severity.OK, f"ChaCha20-Poly1305 is provided by {aead.describe()}"
    )


def _secret(settings: Settings) -> Iterator[Diagnosis]:
    from on_api.core.crypto.secrets import SECRET_FILE, Keyring

    Keyring.load(settings)
    if settings.secret_key is None:
        mode = stat.S_IMODE((settings.home / SECRET_FILE).stat().st_mode)
        if mode & 0o077:
            yield Diagnosis(
                "master secret",
                Severity.BROKEN,
                "other users of this machine can read it",
                f"chmod 600 {settings.home / SECRET_FILE}",
            )
            return
        yield Diagnosis("master secret", Severity.OK, f"read from {SECRET_FILE}")
    elif len(set(settings.secret_key.get_secret_value())) < WEAK_BELOW_CHARACTERS:
        cure = "create a new one before you store any data: openssl rand -base64 48"
        yield Diagnosis(
            "master secret",
            Severity.WARNING,
            "it looks weak: it has only a few different characters",
            cure,
        )
    else:
        yield Diagnosis("master secret", Severity.OK, "read from ON_API_SECRET_KEY")


def _database(settings: Settings) -> Iterator[Diagnosis]:
    from on_api.core.models import Database
    from on_api.core.models.revisions import check_revision

    database = Database(settings)
    try:
        with database.session_scope(write=False) as session:
            connection = session.connection()
            yield Diagnosis("database", Severity.OK, f"{connection.dialect.name} is reachable")
            try:
                check_revision(connection)
            except StartupError as error:
                yield Diagnosis("migrations", Severity.BROKEN, error.details)
            else:
                yield Diagnosis("migrations", Severity.OK, "the schema is up to date")
                yield from _secret_of_rows(session, settings)
            yield _clock(session)
            if database.is_postgresql:
                allowed = int(session.scalar(text("SHOW max_connections")) or 0)
                yield _pool(settings, allowed)
    finally:
        database.dispose()


def _clock(session: Session) -> Diagnosis:
    from on_api.core.models.database import moment_of, utc_now

    before = utc_now()
    there = moment_of(session)
    after = utc_now()
    ahead = (before + (after - before) / 2 - there).total_seconds()
    details = (
        f"this machine's clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the"
        " database's"
    )
    if abs(ahead) <= CLOCKS_DIFFER_SECONDS:
        return Diagnosis("clock", Severity.OK, details)
    cure = (
        "synchronise the clocks of both machines with a time server, since the expiry of keys and"
        " the traffic accounting depend on them"
    )
    return Diagnosis("clock", Severity.WARNING, details, cure)


def _secret_of_rows(session: Session, settings: Settings) -> Iterator[Diagnosis]:
    from on_api.core.crypto.secrets import Keyring
    from on_api.core.services.accounts.rotation import secret_problem

    name = "what the secret protects"
    try:
        keyring = Keyring.load(settings)
    except StartupError:
        return  # reported already
    problem = secret_problem(session, keyring)
    if problem is None:
        yield Diagnosis(name, Severity.OK, "the master secret here can decrypt it")
    else:
        details, _, cure = problem.partition(": ")
        yield Diagnosis(name, Severity.BROKEN, details, cure)


def _instance(settings: Settings) -> Iterator[Diagnosis]:
    from on_api.core.services.upkeep.instance import running_instance

    name = "instance"
    instance = running_instance(settings.home)
    if instance is None:
        yield Diagnosis(name, Severity.OK, "on-api is not running in this home")
    elif instance.uses_database_of(settings):
        yield Diagnosis(
            name, Severity.OK, f"on-api is running in this home as process {instance.pid}"
        )
    else:
        details, _, cure = instance.other_database_message().partition(": ")
        yield Diagnosis(name, Severity.BROKEN, details, cure)


def _node(settings: Settings) -> Iterator[Diagnosis]:
    from on_api.core.ipfs.daemon.version import TESTED_RANGE
    from on_api.core.services.upkeep.node_adoption import asking

    async def ask() -> Diagnosis:
        async with asking(settings) as node:
            version = await node.version()
        if version.tested:
            return Diagnosis("node", Severity.OK, f"{version.agent} {version.version}")
        return Diagnosis(
            "node",
            Severity.WARNING,
            f"{version.agent} {version.version} is outside the tested range {TESTED_RANGE}",
            "use a tested version, or report whether this one works",
        )

    try:
        yield asyncio.run(ask())
    except WrongNode as error:
        details, _, advice = error.details.partition(": on-api did not use it")
        yield Diagnosis("node", Severity.BROKEN, details, advice.strip(". ") or _START_IT)
    except OnApiError as error:
        cure = _START_IT if settings.manages_node else None
        yield Diagnosis("node", Severity.BROKEN, error.details, cure)


def _gateway(settings: Settings) -> Iterator[Diagnosis]:
    from on_api.core.services.content.walking import DamagedError, read_block
    from on_api.core.services.upkeep.node_adoption import asking
    from on_api.core.services.upkeep.readiness import gateway_problem

    async def ask() -> str | None:
        async with asking(settings) as node:
            problem = await gateway_problem(node)
            known = _some_content(settings)
            if problem is None and known is not None:
                try:
                    await read_block(node, known)
                except DamagedError as error:
                    return f"The node lacks content that the database expects: {error}."
            return problem

    name = "gateway"
    problem = asyncio.run(ask())
    if problem is None:
        yield Diagnosis(name, Severity.OK, "serves content as expected")
    elif settings.manages_node:
        yield Diagnosis(
            name,
            Severity.BROKEN,
            problem,
            f"{_START_IT}; if it is already running, check it with `on-api fsck`",
        )
    else:
        cure = (
            "ON_API_IPFS__GATEWAY_URL must be the gateway of the node at ON_API_IPFS__RPC_URL;"
            " run `on-api fsck` to check for damaged content"
        )
        yield Diagnosis(name, Severity.BROKEN, problem, cure)


def _some_content(settings: Settings) -> Cid | None:
    """Return a content that the node must have, None if there is none."""
    from on_api.core.models import Content, Database
    from on_api.core.models.content import PINNED

    with Database.opened(settings) as database:
        try:
            with database.session_scope(write=False) as session:
                found = session.scalar(select(Content.cid).where(Content.state == PINNED).limit(1))
                return None if found is None else Cid.from_text(found)
        except (OnApiError, SQLAlchemyError):
            return None  # reported already


def node_settings(settings: Settings) -> Iterator[Diagnosis]:
    """Compare the node's configuration with the one that on-api wants."""
    from on_api.core.ipfs.daemon.repo import config_differences

    name = "node's settings"
    if settings.manages_node:
        path = settings.home / "ipfs" / "config"
        if not path.exists():
            yield Diagnosis(
                name,
                Severity.WARNING,
                "the repo does not exist yet",
                "`on-api serve` will create it",
            )
            return
        config = json.loads(path.read_text())
    else:
        config = asyncio.run(_ask_for_config(settings))
    differences = config_differences(config, settings.node)
    for difference in differences:
        details, _, cure = difference.partition(": ")
        yield Diagnosis(name, Severity.WARNING, details, cure)
    if not differences:
        yield Diagnosis(name, Severity.OK, "durable, and using the profile unixfs-v1-2025")


async def _ask_for_config(settings: Settings) -> dict[str, object]:
    from on_api.core.services.upkeep.node_adoption import asking

    async with asking(settings) as node:
        return await node.config()


def _pool(settings: Settings, allowed: int) -> Diagnosis:
    # Two more in each process: one receives cache invalidations, one proves that they arrive.
    of_one = settings.database.pool_size + settings.database.max_overflow + 2
    wanted = of_one * settings.processes
    details = (
        f"{settings.processes} API process(es) may open up to {wanted} connections; the server"
        f" allows {allowed}"
    )
    if wanted < allowed:
        return Diagnosis("connections", Severity.OK, details)
    cure = (
        "lower ON_API_PROCESSES, or ON_API_DATABASE__POOL_SIZE and __MAX_OVERFLOW (together"
        " with ON_API_THREADS), or raise PostgreSQL's max_connections"
    )
    return Diagnosis("connections", Severity.WARNING, details, cure)


def _ports(settings: Settings) -> Iterator[Diagnosis]:
    """Check whether our ports are free; one held by the on-api of this home is fine."""
    from on_api.core.services.upkeep.instance import running_instance

    instance = running_instance(settings.home)
    is_ours = instance is not None and instance.port == settings.port
    if instance is None and settings.manages_node:
        yield from _node_ports(settings)
    if not _is_taken(settings.host, settings.port):
        yield Diagnosis("ports", Severity.OK, f"port {settings.port} is free")
    elif is_ours and _is_on_api(settings):
        yield Diagnosis("ports", Severity.OK, f"port {settings.port} is used by on-api itself")
    elif _is_on_api(settings):
        yield Diagnosis(
            "ports",
            Severity.WARNING,
            f"port {settings.port} is in use by an on-api that does not belong to this home",
            "set ON_API_HOME to its home, or choose another port with ON_API_PORT",
        )
    else:
        yield Diagnosis(
            "ports",
            Severity.BROKEN,
            f"port {settings.port} is in use by another program",
            "stop it, or choose another port with ON_API_PORT",
        )


def _node_ports(settings: Settings) -> Iterator[Diagnosis]:
    """Check the ports that the node of this home will need, unless it is running already."""
    from on_api.core.ipfs.daemon.whose import rpc_port_of

    if rpc_port_of(settings.home / "ipfs") is not None:
        return
    for port, name in (
        (settings.node.rpc_port, "RPC_PORT"),
        (settings.node.gateway_port, "GATEWAY_PORT"),
    ):
        if _is_taken("127.0.0.1", port):
            yield Diagnosis(
                "node's ports",
                Severity.BROKEN,
                f"port {port} is in use by another program",
                f"stop it, or choose another with ON_API_NODE__{name} (make run {name}=…)",
            )


def _is_taken(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, port)) == 0


def _is_on_api(settings: Settings) -> bool:
    import httpx

    url = f"http://{settings.host}:{settings.port}/healthz"
    try:
        return bool(httpx.get(url, timeout=2, trust_env=False).json() == {"status": "ok"})
    except (httpx.HTTPError, ValueError):
        return False


def swagger(_settings: Settings) -> Iterator[Diagnosis]:
    """Check for the files of Swagger UI."""
    missing = [name for name in SWAGGER_FILES if not (SWAGGER_FOLDER / name).is_file()]
    if missing:
        cure = "restore on_api/public/static from the release"
        details = f"missing: {', '.join(missing)}"
        yield Diagnosis("Swagger UI", Severity.BROKEN, details, cure)
    else:
        yield Diagnosis("Swagger UI", Severity.OK, "its files are here")
