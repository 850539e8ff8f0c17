"""Groups of settings: values, bounds and defaults of one subject each. `settings.py` joins and
reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

KIB = 1024
MIB = 1024 * KIB
GB = 10**9

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
"""A duration in seconds."""


class Group(BaseModel):
    """A nested group of settings; a misspelt name is an error, not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(Group):
    """Connections to the database."""

    pool_size: int = Field(20, ge=1, le=1000, description="Connections kept open by one process.")
    max_overflow: int = Field(
        25, ge=0, le=1000, description="Further connections opened under load."
    )
    connect_timeout: int = Field(
        5, ge=1, le=60, description="Seconds to wait for a new connection."
    )
    pool_timeout: Seconds = Field(10, description="Seconds to wait for a free connection.")
    statement_timeout: Seconds = Field(
        30, description="Seconds after which PostgreSQL ends a statement."
    )
    lock_timeout: Seconds = Field(
        10, description="Seconds to wait for a lock, on SQLite for the writer's turn."
    )


class IpfsSettings(Group):
    """An existing IPFS node; without one, on-api runs its own (`NodeSettings`)."""

    rpc_url: str | None = Field(
        None, description="RPC of an existing Kubo, e.g. http://127.0.0.1:5001"
    )
    gateway_url: str | None = Field(
        None, description="Gateway of that Kubo, e.g. http://127.0.0.1:8080"
    )
    rpc_auth: SecretStr | None = Field(
        None, description="Its RPC secret: `bearer:TOKEN` or `basic:USER:PASSWORD`."
    )
    # So long not because of the network: a process with many uploads may only notice seconds later
    # that it is connected.
    connect_timeout: Seconds = Field(10, description="Seconds to reach the node.")
    control_timeout: Seconds = Field(10, description="Seconds for a short question to the node.")
    stall_timeout: Seconds = Field(
        30, description="Seconds without progress after which a transfer is given up."
    )
    finish_timeout: Seconds = Field(
        300, description="Seconds for the node to store and pin a file already sent."
    )

    @field_validator("rpc_url")
    @classmethod
    def _is_rpc(cls, value: str | None) -> str | None:
        return None if value is None else http_origin(value).removesuffix("/api/v0")

    @field_validator("gateway_url")
    @classmethod
    def _is_gateway(cls, value: str | None) -> str | None:
        return None if value is None else http_origin(value).removesuffix("/ipfs")

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.rpc_url is None) != (self.gateway_url is None):
            msg = "set both ON_API_IPFS__RPC_URL and ON_API_IPFS__GATEWAY_URL, or neither"
            raise ValueError(msg)
        return self


class NodeSettings(Group):
    """The Kubo node that on-api finds or builds, initialises and runs itself."""

    binary: Path | None = Field(
        None, description="The `ipfs` program to run; searched for or built when not set."
    )
    network: Literal["private", "public"] = Field(
        "private",
        description="`private`: loopback only, no peers. `public`: joins the IPFS network.",
    )
    rpc_port: Port = Field(5001, description="Loopback port of the node's RPC.")
    gateway_port: Port = Field(8080, description="Loopback port of the node's gateway.")
    swarm_port: Port = Field(4001, description="Port for other IPFS nodes (`public` only).")
    storage_max: str = Field(
        "1TB", pattern=r"^\d+(\.\d+)?[kKMGTP]?i?B$", description="The node's StorageMax."
    )
    min_free: int = Field(
        1 * GB, ge=0, le=2**62, description="Bytes of disk kept free: below, uploads stop with 507."
    )
    start_timeout: Seconds = Field(60, description="Seconds that the node may take to start.")
    shutdown_timeout: Seconds = Field(30, description="Seconds that the node may take to stop.")


class AuthSettings(Group):
    """Accounts, passwords and short-lived tokens."""

    token_lifetime: int = Field(
        3600, ge=60, le=86_400, description="Seconds that a password login's token lives."
    )
    scrypt_log_n: int = Field(
        15, ge=10, le=18, description="log2 of scrypt's cost for new password hashes."
    )
    passphrase_log_n: int = Field(
        18, ge=10, le=18, description="The same for private files' passphrases; 18 is age's own."
    )
    scrypt_memory: int = Field(
        256 * MIB,
        ge=32 * MIB,
        description="Bytes that passwords and passphrases may use at once in a process.",
    )
    scrypt_waiting: int = Field(
        100,
        ge=1,
        le=10_000,
        description="Passwords that may wait: strangers', and as many of those who are known.",
    )
    scrypt_per_address: int = Field(
        8,
        ge=0,
        le=10_000,
        description="Strangers' that may wait from one address (IPv6: one /64); 0: no limit.",
    )
    failures_allowed: int = Field(
        5, ge=1, le=100, description="Wrong passwords for one name from one address before a pause."
    )
    failure_pause: int = Field(
        60, ge=1, le=86_400, description="Seconds of the first pause; doubled at each next one."
    )


class FilesSettings(Group):
    """Uploads."""

    default_visibility: Literal["public", "private"] = Field(
        "public", description="Used when an upload names no visibility."
    )
    max_size: int = Field(100 * GB, ge=1, le=2**62, description="Bytes that one file may have.")
    idle_timeout: Seconds = Field(
        60, description="Seconds without a byte from the client before an upload ends."
    )
    lease_seconds: int = Field(
        120, ge=10, le=3600, description="Life of an upload's lease; renewed while it runs."
    )
    bundle_below: int = Field(
        256 * KIB,
        ge=0,
        le=MIB,
        description="Uploads up to so many bytes share a pin when many come at once; 0: none.",
    )
    max_parts: int = Field(1000, ge=1, le=10_000, description="Parts in one multipart upload.")
    answers_bytes: int = Field(
        16 * MIB,
        ge=0,
        le=2**40,
        description="Memory of a process for answers about files (their metadata); 0: none.",
    )


class PinsSettings(Group):
    """Pins that have to be fetched from other IPFS nodes."""

    deadline: int = Field(
        86_400, ge=1, le=365 * 86_400, description="Seconds after which a pin not found has failed."
    )
    patience: Seconds = Field(
        60, description="Seconds without a new block after which a fetch makes room for another."
    )
    concurrency: int = Field(16, ge=1, le=1000, description="Fetches at once in one worker.")
    dial_private: bool = Field(
        False, description="Dial origins at loopback, private and link-local addresses too."
    )
    delegates: list[Annotated[str, Field(pattern=r"^/.+/p2p/[A-Za-z0-9]+$")]] = Field(
        default=[],
        max_length=20,
        description="Addresses told to clients, each ending in /p2p/ID; else the node's own.",
    )


class ImportsSettings(Group):
    """Imports from other services, and the calls that they make."""

    at_once: int = Field(
        4, ge=1, le=100, description="Imports that one worker carries out at once."
    )
    concurrency: int = Field(
        16, ge=1, le=256, description="Items of one import that are moved at once."
    )
    patience: Seconds = Field(
        30, description="Seconds without a new block over IPFS after which a gateway is tried."
    )
    deadline: int = Field(
        21_600, ge=1, le=30 * 86_400, description="Seconds after which an item is given up."
    )
    max_items: int = Field(1_000_000, ge=1, le=2**31, description="Items that one import may have.")
    allow_private: bool = Field(
        False, description="Call http:// URLs and loopback, private and link-local addresses too."
    )
    connect_timeout: Seconds = Field(10, description="Seconds to reach another service.")
    read_timeout: Seconds = Field(30, description="Seconds without a byte from it.")
    total_timeout: Seconds = Field(120, description="Seconds for one answer that is no content.")
    block_timeout: Seconds = Field(
        120, description="Seconds in which a gateway must send a block of at most 2 MiB."
    )
    retries: int = Field(
        4, ge=0, le=20, description="Tries after one that failed for a reason that passes."
    )
    longest_pause: Seconds = Field(
        60, description="Seconds to wait between tries at most, whatever Retry-After says."
    )
    max_answer: int = Field(
        32 * MIB, ge=64 * KIB, le=1024 * MIB, description="Bytes of one answer that is no content."
    )
    max_list: int = Field(16 * MIB, ge=1, le=256 * MIB, description="Bytes of a list of CIDs.")


class WorkerSettings(Group):
    """Work that no request waits for: fetching pins, unpinning, garbage collection."""

    embedded: bool = Field(
        True, description="Work inside `on-api serve`; else run `on-api worker` beside it."
    )
    poll: Seconds = Field(
        0.5,
        description="Least seconds between two looks for work whose time comes by itself; new work "
        "is begun at once.",
    )
    lease_seconds: int = Field(
        30,
        ge=2,
        le=3600,
        description="Life of a job's lease; a crashed worker's jobs wait so long.",
    )


class GcSettings(Group):
    """Freeing what nobody holds."""

    grace: int = Field(
        3600, ge=0, le=365 * 86_400, description="Seconds from the last reference to the unpinning."
    )
    interval: int = Field(
        86_400, ge=0, le=365 * 86_400, description="Seconds between garbage collections; 0: never."
    )
    patience: Seconds = Field(
        60, description="Seconds to wait for uploads under way before it is put off."
    )
    quarantine: int = Field(
        86_400,
        ge=0,
        le=365 * 86_400,
        description="Seconds that `fsck` leaves a pin that no row tells of, from its first sight.",
    )


class ConnectionSettings(Group):
    """Connections of clients, and how long each is waited for."""

    most: int = Field(
        10_000, ge=1, le=1_000_000, description="Connections to one process; more get a 503."
    )
    most_per_address: int = Field(
        1000,
        ge=0,
        le=1_000_000,
        description="From one address (IPv6: one /64), unless proxies are trusted; 0: no limit.",
    )
    head_timeout: Seconds = Field(
        30, description="Seconds for a request's head, from its first byte or from connecting."
    )
    idle_timeout: Seconds = Field(
        75, description="Seconds for the next request to begin, before the connection is closed."
    )
    body_idle_timeout: Seconds = Field(
        30, description="Seconds without a byte of a body that is no upload (JSON, forms)."
    )
    body_timeout: Seconds = Field(60, description="Seconds for all of such a body.")
    send_timeout: Seconds = Field(
        60, description="Seconds in which a client takes nothing of its answer before it is cut."
    )


class CorsSettings(Group):
    """Browsers' cross-origin calls."""

    origins: list[str] = Field(
        default=[], description='Origins allowed, e.g. ["https://app.example"], or ["*"].'
    )
    credentials: bool = Field(
        False, description="Allow cookies and HTTP authentication; never together with `*`."
    )

    @model_validator(mode="after")
    def _never_any_origin_with_credentials(self) -> Self:
        if self.credentials and "*" in self.origins:
            msg = "ON_API_CORS__CREDENTIALS can't be combined with the origin *"
            raise ValueError(msg)
        return self


class TrafficSettings(Group):
    """Counting what goes out, and keeping it within budgets."""

    flush_interval: Seconds = Field(
        2, le=60, description="Seconds between two writings of what was counted."
    )
    over_budget: Literal["refuse", "redirect", "allow"] = Field(
        "refuse",
        description="When a budget is used up. `redirect`: public content to the fallback gateway.",
    )
    instance_budget: int | None = Field(
        None, ge=0, le=2**62, description="Bytes that all together may send out a calendar month."
    )
    price_per_gb: float | None = Field(
        None, ge=0, le=1e6, description="What 10^9 bytes out cost you, for reports."
    )
    currency: str = Field("EUR", pattern=r"^[A-Z]{3}$", description="The price's (ISO 4217).")
    hours_kept: int = Field(
        35, ge=1, le=3650, description="Days after which hours are merged into their day."
    )
    days_kept: int = Field(
        400, ge=31, le=36_500, description="Days after which days are merged into their month."
    )


class GatewaySettings(Group):
    """The gateway `/ipfs`."""

    policy: Literal["listed", "local", "closed"] = Field(
        "listed",
        description="`listed`: public files and pins; `local`: all on the node; `closed`: by key.",
    )
    cache_bytes: int = Field(
        32 * MIB, ge=0, le=2**40, description="Memory for hot answers in one process; 0: none."
    )
    fallback_url: str | None = Field(
        None, description="A public gateway's origin, e.g. https://ipfs.io, for `redirect`."
    )
    rate_per_ip: float = Field(
        0, ge=0, le=1e6, description="Requests a second from one address; 0: no limit."
    )
    rate_per_key: float = Field(
        0, ge=0, le=1e6, description="Requests a second with one key; 0: no limit."
    )
    connections_per_ip: int = Field(
        0, ge=0, le=100_000, description="Answers under way to one address; 0: no limit."
    )

    accel_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Shared with nginx, which then fetches large public answers from the node.",
    )
    accel_min_bytes: int = Field(
        MIB, ge=0, le=2**60, description="Smaller answers don't take that way."
    )

    @field_validator("fallback_url")
    @classmethod
    def _is_plain_http_url(cls, value: str | None) -> str | None:
        return None if value is None else http_origin(value)


class LogSettings(Group):
    """Logs, written to standard error."""

    format: Literal["console", "json"] = Field("console", description="`json`: one object a line.")
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The least level written."
    )


def http_origin(value: str) -> str:
    """Return an http:// or https:// URL without its trailing slash; it may have a path.

    Raises `ValueError`, which doesn't show the value, for any other.
    """
    msg = "must be an http:// or https:// URL without a user or password in it, a query or a #"
    try:
        parts = urlsplit(value)
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a malformed port or IPv6 address
        raise ValueError(msg) from None
    is_plain = value.isprintable() and not any(mark in value for mark in " @?#\\")
    if parts.scheme not in {"http", "https"} or not is_whole or not is_plain:
        raise ValueError(msg)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
