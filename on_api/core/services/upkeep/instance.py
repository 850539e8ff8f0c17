"""The on-api that runs in a home, as other commands find it: its addresses, node and database, in
one file of the home (ADR 0024).

The process locks the file as long as it lives: a file left by a killed process is recognised by the
missing lock. Holds no secret.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy.engine import make_url

from on_api.core.setting_groups import Port
from on_api.core.settings import Settings

logger = logging.getLogger(__name__)

FILE = "instance.json"
MAX_BYTES = 64 * 1024
_NAMING = {"dbname", "host", "hostaddr", "options", "port", "service", "user"}
"""Parameters of a URL that identify the database. Others may be secrets (`password`)."""


class Instance(BaseModel):
    """Running `on-api serve` or `on-api node run`."""

    model_config = ConfigDict(frozen=True)

    pid: int
    host: str | None
    port: Port | None
    """Port of the API; None where it only runs the node."""
    manages_node: bool
    rpc_url: str
    gateway_url: str
    rpc_port: Port
    gateway_port: Port
    database: str | None
    """URL of its database without secrets; None where it uses none."""

    @classmethod
    def of(cls, settings: Settings, *, serves: bool) -> Instance:
        """Describe this process by its settings; `serves`: it serves the API, from the database."""
        return cls(
            pid=os.getpid(),
            host=settings.host if serves else None,
            port=settings.port if serves else None,
            manages_node=settings.manages_node,
            rpc_url=settings.rpc_url,
            gateway_url=settings.gateway_url,
            rpc_port=settings.node.rpc_port,
            gateway_port=settings.node.gateway_port,
            database=database_of(settings) if serves else None,
        )

    def applied_to(self, settings: Settings) -> Settings:
        """Return the settings of a command in the same home, with the addresses of this instance.

        A node that the command's own settings name by URL is kept.
        """
        changes: dict[str, object] = {}
        if self.port is not None:
            changes |= {"host": self.host, "port": self.port}
        if settings.manages_node and self.manages_node:
            ports = {"rpc_port": self.rpc_port, "gateway_port": self.gateway_port}
            changes["node"] = settings.node.model_copy(update=ports)
        elif settings.manages_node:
            urls = {"rpc_url": self.rpc_url, "gateway_url": self.gateway_url}
            changes["ipfs"] = settings.ipfs.model_copy(update=urls)
        return settings.model_copy(update=changes)

    def uses_database_of(self, settings: Settings) -> bool:
        """Return whether a command with these settings would use the same database."""
        return self.database is None or self.database == database_of(settings)

    def other_database_message(self) -> str:
        """Return the error message for a command with another database."""
        return (
            f"The on-api that is running in this home (process {self.pid}) uses a different"
            f" database, {self.database}: set ON_API_DATABASE_URL to the same one, or"
            " ON_API_HOME to the home that you want to use"
        )


def database_of(settings: Settings) -> str:
    """Return the URL of the settings' database, to compare and show: without secrets."""
    url = make_url(settings.sqlalchemy_url)
    if settings.uses_sqlite and url.database:
        return f"sqlite:///{Path(url.database).resolve()}"
    named = {name: url.query[name] for name in sorted(_NAMING & url.query.keys())}
    return url.set(query=named).render_as_string(hide_password=True)


@contextmanager
def published(settings: Settings, *, serves: bool) -> Iterator[None]:
    """Publish this process to other commands while the block runs.

    If another process is published already (two servers in one home, with a node that on-api does
    not run), that one stays. A home that can't be written to does not keep the process from
    serving.
    """
    path = settings.home / FILE
    descriptor = None
    try:
        if running_instance(settings.home) is None:
            descriptor = _publish(path, Instance.of(settings, serves=serves))
    except OSError as error:
        logger.warning("could not announce this process to other commands: %s", error.strerror)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    path.unlink()
            os.close(descriptor)


def running_instance(home: Path) -> Instance | None:
    """Return the on-api that runs in a home; None if none is published."""
    try:
        with (home / FILE).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return Instance.model_validate_json(file.read(MAX_BYTES))
            return None  # its process is gone
    except (OSError, ValidationError):
        return None


def _publish(path: Path, instance: Instance) -> int:
    """Write the file. Returns the descriptor that holds its lock until it is closed."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{FILE}-", dir=path.parent)  # made with 0600
    try:
        # Locked before it gets its name, so that it is never found unlocked.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, json.dumps(instance.model_dump(), indent=2).encode() + b"\n")
        Path(draft).replace(path)
    except BaseException:
        os.close(descriptor)
        Path(draft).unlink(missing_ok=True)
        raise
    return descriptor
