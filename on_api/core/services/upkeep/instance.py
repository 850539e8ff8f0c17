"""The on-api that runs in a home, as it tells other commands: its addresses, node and database, in
one file of the home (ADR 0024).

The file is locked by the process that it tells of, for as long as that lives: one that a killed
process has left is known by its lock, which is gone. Holds no secret.
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
"""Parameters of a URL that say which database it is. Others may be secrets (`password`)."""


class Instance(BaseModel):
    """A running `on-api serve` or `on-api node run`."""

    model_config = ConfigDict(frozen=True)

    pid: int
    host: str | None
    port: Port | None
    """Where it serves; None where it only runs the node."""
    manages_node: bool
    rpc_url: str
    gateway_url: str
    rpc_port: Port
    gateway_port: Port
    database: str | None
    """Its URL without its secrets; None where it uses none."""

    @classmethod
    def of(cls, settings: Settings, *, serves: bool) -> Instance:
        """This process with its settings; `serves`: the API, from the database."""
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
        """The settings of a command in the same home, with the addresses of this instance.

        A node that the command's own settings name by URL stays.
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
        """Whether a command with these settings would use the same database."""
        return self.database is None or self.database == database_of(settings)

    def told_database(self) -> str:
        """How the trouble with another database is said."""
        return (
            f"The on-api that runs in this home (process {self.pid}) uses another database,"
            f" {self.database}: set ON_API_DATABASE_URL as it has it, or ON_API_HOME to the home"
            " that is meant"
        )


def database_of(settings: Settings) -> str:
    """The database of some settings, for comparing and showing: without its secrets."""
    url = make_url(settings.sqlalchemy_url)
    if settings.uses_sqlite and url.database:
        return f"sqlite:///{Path(url.database).resolve()}"
    named = {name: url.query[name] for name in sorted(_NAMING & url.query.keys())}
    return url.set(query=named).render_as_string(hide_password=True)


@contextmanager
def published(settings: Settings, *, serves: bool) -> Iterator[None]:
    """Have others find this process while the block runs.

    Where another one is told of already (two servers in one home, with a node of somebody else's)
    that one stays. A home that can't be written to is no reason not to serve.
    """
    path = settings.home / FILE
    descriptor = None
    try:
        if running_instance(settings.home) is None:
            descriptor = _publish(path, Instance.of(settings, serves=serves))
    except OSError as error:
        logger.warning("other commands can't be told of this process: %s", error.strerror)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    path.unlink()
            os.close(descriptor)


def running_instance(home: Path) -> Instance | None:
    """The on-api that runs in a home; None: none that tells of itself."""
    try:
        with (home / FILE).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return Instance.model_validate_json(file.read(MAX_BYTES))
            return None  # nobody has it any more
    except (OSError, ValidationError):
        return None


def _publish(path: Path, instance: Instance) -> int:
    """Write the file. Returns the descriptor that holds its lock until it is closed."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{FILE}-", dir=path.parent)  # made with 0600
    try:
        # Locked before it has its name: nobody ever finds it without.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, json.dumps(instance.model_dump(), indent=2).encode() + b"\n")
        Path(draft).replace(path)
    except BaseException:
        os.close(descriptor)
        Path(draft).unlink(missing_ok=True)
        raise
    return descriptor
