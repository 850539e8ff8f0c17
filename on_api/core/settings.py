"""Every setting of on-api, read from the environment (prefix `ON_API_`, nested with `__`), from
files in `$CREDENTIALS_DIRECTORY`, and from `.env`.

Holds values, bounds and defaults only: it opens no other file. `installation.py` decides where the
home is when none is named.
"""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from on_api.core.installation import LOCAL_HOME, default_home
from on_api.core.limit_settings import LimitsSettings
from on_api.core.server_settings import (
    AuthSettings,
    ConnectionSettings,
    CorsSettings,
    DatabaseSettings,
    LogSettings,
)
from on_api.core.setting_groups import (
    FilesSettings,
    GatewaySettings,
    GcSettings,
    ImportsSettings,
    IpfsSettings,
    NodeSettings,
    PinsSettings,
    Port,
    TrafficSettings,
    WorkerSettings,
    http_origin,
)

OF_COMMANDS = {"new_password", "source_token", "source_password"}
"""Secrets that commands read from the environment; they are no settings."""


class UnknownSettingError(ValueError):
    """A name in the environment, in `.env` or of a credential that looks like a setting but is
    not."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not a setting of on-api (see .env.example)")


class UnreadableCredentialError(ValueError):
    """`$CREDENTIALS_DIRECTORY`, or a file in it that is named as a setting, can't be read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} (see $CREDENTIALS_DIRECTORY) can't be read: {reason}")


class _CredentialFiles(EnvSettingsSource):
    """Settings in files, each named as its variable, below `$CREDENTIALS_DIRECTORY`: what systemd's
    `LoadCredential=` and mounted secrets of containers provide.

    White space around a value is removed, as from `secret.key`. An empty file counts as none.
    """

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        values = _credentials(Path(folder), self.env_prefix) if folder else {}
        self.env_vars = {name: value for name, value in values.items() if value}


def _credentials(folder: Path, prefix: str) -> dict[str, str]:
    """Return the values of a folder's files by their names in lower case, of those that begin with
    the prefix. A folder that does not exist has none.

    Raises `UnreadableCredentialError`: what was meant to be set must not silently be a default.
    """
    values = {}
    path = folder
    try:
        for path in sorted(folder.iterdir()):
            if path.name.lower().startswith(prefix.lower()):
                values[path.name.lower()] = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path == folder:
            return {}
        raise UnreadableCredentialError(path, error.strerror or "unknown reason") from None
    except UnicodeDecodeError:
        raise UnreadableCredentialError(path, "it is not UTF-8") from None
    return values


class Settings(BaseSettings):
    """All settings. Read once per process and passed to `create_app`; never a global."""

    model_config = SettingsConfigDict(
        env_prefix="ON_API_",
        env_nested_delimiter="__",
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        # Other names in `.env` belong to other programs; misspelt names of ours are found below.
        extra="ignore",
        frozen=True,
        # A refused value may be a secret: error messages don't show it.
        hide_input_in_errors=True,
    )

    home: Path = Field(
        default_factory=default_home,
        description="Folder in which on-api stores its database, node and secrets.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(8000, description="Port to listen on.")
    processes: int = Field(
        1, ge=1, le=64, description="Number of API processes; more than one requires PostgreSQL."
    )
    fast_lanes: bool = Field(
        True,
        description="Enable optimised code paths for frequent requests; responses are the same.",
    )
    otel: bool = Field(
        False,
        description="Send OpenTelemetry traces (see OTEL_*); requires the extra `otel`.",
    )
    public_url: str | None = Field(
        None, description="Public base URL of this server, used in all URLs that it returns."
    )
    trusted_proxies: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="Proxies whose X-Forwarded-* headers are trusted: addresses or networks,"
        " comma-separated.",
    )
    secret_key: SecretStr | None = Field(
        None,
        description="Master secret of at least 32 characters; default: $ON_API_HOME/secret.key.",
    )
    previous_secret_keys: list[SecretStr] = Field(
        default=[],
        description="Previous master secrets, as long as they are needed, as a JSON list.",
    )
    database_url: SecretStr | None = Field(
        None,
        description="postgresql+psycopg2://USER:PASSWORD@HOST/NAME; default: SQLite in"
        " $ON_API_HOME.",
    )
    registration: Literal["closed", "open"] = Field(
        "closed",
        description="Who may create an account; `open`: anyone, `closed`: only administrators.",
    )
    max_requests: int = Field(
        1000,
        ge=10,
        le=100_000,
        description="Maximum simultaneous requests per process; further ones are answered with"
        " 503.",
    )
    threads: int = Field(
        40, ge=4, le=500, description="Number of threads per process for short database work."
    )

    auth: AuthSettings = AuthSettings()
    connections: ConnectionSettings = ConnectionSettings()
    cors: CorsSettings = CorsSettings()
    database: DatabaseSettings = DatabaseSettings()
    files: FilesSettings = FilesSettings()
    gateway: GatewaySettings = GatewaySettings()
    gc: GcSettings = GcSettings()
    imports: ImportsSettings = ImportsSettings()
    ipfs: IpfsSettings = IpfsSettings()
    limits: LimitsSettings = LimitsSettings()
    log: LogSettings = LogSettings()
    node: NodeSettings = NodeSettings()
    pins: PinsSettings = PinsSettings()
    traffic: TrafficSettings = TrafficSettings()
    worker: WorkerSettings = WorkerSettings()

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()]
            if isinstance(value, str)
            else value
        )

    @field_validator("trusted_proxies")
    @classmethod
    def _are_addresses(cls, value: list[str]) -> list[str]:
        """Refuse text that is not an address: it would silently match no proxy."""
        for place in value:
            if place != "*":
                try:
                    ip_network(place)
                except ValueError:
                    msg = (
                        "must be comma-separated addresses or networks (e.g. 10.0.0.0/8); * trusts"
                        " everybody"
                    )
                    raise ValueError(msg) from None
        return value

    @field_validator("public_url")
    @classmethod
    def _is_plain_http_url(cls, value: str | None) -> str | None:
        return None if value is None else http_origin(value)

    @field_validator("secret_key")
    @classmethod
    def _is_long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 32:
            msg = (
                "ON_API_SECRET_KEY must have at least 32 characters (create one with: openssl rand"
                " -base64 48)"
            )
            raise ValueError(msg)
        return value

    @field_validator("database_url")
    @classmethod
    def _names_its_driver(cls, value: SecretStr | None) -> SecretStr | None:
        """Read a plain `postgresql://` as psycopg2, whatever SQLAlchemy's own default is."""
        if value is None:
            return None
        url = value.get_secret_value()
        scheme, separator, rest = url.partition("://")
        if scheme in {"postgres", "postgresql"}:
            scheme = "postgresql+psycopg2"
        if not separator or scheme not in {"postgresql+psycopg2", "sqlite", "sqlite+pysqlite"}:
            msg = "ON_API_DATABASE_URL must start with postgresql+psycopg2:// or sqlite:///"
            raise ValueError(msg)
        try:
            make_url(url)
        except (ArgumentError, ValueError):
            # Its text may be part of the password.
            msg = "ON_API_DATABASE_URL is malformed: percent-encode special characters in its parts"
            raise ValueError(msg) from None
        return SecretStr(f"{scheme}://{rest}")

    @model_validator(mode="after")
    def _every_thread_finds_a_connection(self) -> Self:
        if self.database.pool_size + self.database.max_overflow < self.threads:
            msg = "ON_API_DATABASE__POOL_SIZE + __MAX_OVERFLOW must be at least ON_API_THREADS"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _a_redirect_has_somewhere_to_go(self) -> Self:
        if self.traffic.over_budget == "redirect" and self.gateway.fallback_url is None:
            msg = "ON_API_TRAFFIC__OVER_BUDGET=redirect requires ON_API_GATEWAY__FALLBACK_URL"
            raise ValueError(msg)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the usual sources, after checking for names that begin with `ON_API_` but are no
        setting.

        Raises `UnknownSettingError`: a misspelt name must not silently get its default.
        """
        prefix = str(cls.model_config["env_prefix"]).lower()
        credentials = _CredentialFiles(settings_cls)
        for source in (env_settings, credentials, dotenv_settings):
            if isinstance(source, EnvSettingsSource):
                for name in source.env_vars:
                    field = name.lower().removeprefix(prefix).partition("__")[0]
                    is_known = field in cls.model_fields or field in OF_COMMANDS
                    if name.lower().startswith(prefix) and not is_known:
                        raise UnknownSettingError(name.upper())
        return init_settings, env_settings, credentials, dotenv_settings

    @property
    def sqlalchemy_url(self) -> str:
        """URL of the database, password included: for the engine only, never for a log."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.home.absolute() / 'on-api.db'}"

    @property
    def home_message(self) -> str:
        """Sentence for people: which home this is, and why."""
        if "home" in self.model_fields_set:
            why = "ON_API_HOME"
        elif self.home == LOCAL_HOME:
            why = "the folder .on-api here"
        else:
            why = "your data folder, since there is neither ON_API_HOME nor ./.on-api"
        return f"the home is {self.home.absolute()} ({why})"

    @property
    def uses_sqlite(self) -> bool:
        """True if the database is a file, which has a single writer."""
        return self.sqlalchemy_url.startswith("sqlite")

    @property
    def manages_node(self) -> bool:
        """True if on-api runs the node itself."""
        return self.ipfs.rpc_url is None

    @property
    def rpc_url(self) -> str:
        """Origin of the node's RPC, without a trailing slash."""
        return self.ipfs.rpc_url or f"http://127.0.0.1:{self.node.rpc_port}"

    @property
    def gateway_url(self) -> str:
        """Origin of the node's gateway as on-api reaches it, without a trailing slash."""
        return self.ipfs.gateway_url or f"http://127.0.0.1:{self.node.gateway_port}"

    @property
    def base_url(self) -> str:
        """Origin of on-api itself as clients reach it."""
        host = "localhost" if self.host in {"127.0.0.1", "0.0.0.0", "::", "::1"} else self.host  # noqa: S104 (compared, not bound)
        return self.public_url or f"http://{host}:{self.port}"
