"""The known troubles, each with its cure: what `on-api doctor` prints."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata

from on_api.core.errors import OnApiError, StartupError
from on_api.core.settings import Settings


class Verdict(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """One thing looked at, and what to do about it."""

    name: str
    verdict: Verdict
    details: str
    cure: str | None = None


def diagnose(settings: Settings) -> Sequence[Finding]:
    """Look at everything. What can't be looked at is a finding too."""
    looks: dict[str, Callable[[Settings], Iterator[Finding]]] = {
        "pycryptodome": _crypto,
        "master secret": _secret,
        "database": _database,
        "node": _node,
        "node's settings": _node_settings,
    }
    findings: list[Finding] = []
    for name, look in looks.items():
        try:
            findings += look(settings)
        except OnApiError as error:
            findings.append(Finding(name, Verdict.BROKEN, error.details))
    return findings


def _crypto(_settings: Settings) -> Iterator[Finding]:
    name = "pycryptodome"
    cure = "pip uninstall -y pycrypto && pip install --force-reinstall --no-deps pycryptodome"
    try:
        metadata.distribution("pycrypto")
    except metadata.PackageNotFoundError:
        yield Finding(name, Verdict.OK, metadata.version(name))
    else:
        yield Finding(
            name, Verdict.BROKEN, "pycrypto is installed beside it and overwrites its files", cure
        )


def _secret(settings: Settings) -> Iterator[Finding]:
    from on_api.core.crypto.secrets import MasterSecret

    MasterSecret.load(settings)
    source = "ON_API_SECRET_KEY" if settings.secret_key is not None else "secret.key"
    yield Finding("master secret", Verdict.OK, f"from {source}")


def _database(settings: Settings) -> Iterator[Finding]:
    from on_api.core.models import Database
    from on_api.core.models.migrations import check_revision

    database = Database(settings)
    try:
        with database.session_scope(write=False) as session:
            connection = session.connection()
            yield Finding("database", Verdict.OK, f"{connection.dialect.name}, reachable")
            try:
                check_revision(connection)
            except StartupError as error:
                yield Finding("migrations", Verdict.BROKEN, error.details)
            else:
                yield Finding("migrations", Verdict.OK, "at head")
    finally:
        database.dispose()


def _node(settings: Settings) -> Iterator[Finding]:
    from on_api.core.ipfs.version import TESTED_RANGE
    from on_api.core.services.node import connect_node

    async def ask() -> Finding:
        async with connect_node(settings) as node:
            version = await node.version()
        if version.tested:
            return Finding("node", Verdict.OK, f"{version.agent} {version.version}")
        return Finding(
            "node",
            Verdict.WARNING,
            f"{version.agent} {version.version} is outside the tested range {TESTED_RANGE}",
            "use a tested version, or report how it went with this one",
        )

    try:
        yield asyncio.run(ask())
    except OnApiError as error:
        cure = "start it: `on-api serve` or `on-api node run`" if settings.manages_node else None
        yield Finding("node", Verdict.BROKEN, error.details, cure)


def _node_settings(settings: Settings) -> Iterator[Finding]:
    from on_api.core.ipfs.repo import config_differences

    name = "node's settings"
    if not settings.manages_node:
        return
    path = settings.home / "ipfs" / "config"
    if not path.exists():
        yield Finding(name, Verdict.WARNING, "there is no repo yet", "`on-api serve` makes it")
        return
    differences = config_differences(json.loads(path.read_text()), settings.node)
    for difference in differences:
        yield Finding(name, Verdict.WARNING, difference, "start on-api again; it sets them anew")
    if not differences:
        yield Finding(name, Verdict.OK, "durable, with the CID profile")
