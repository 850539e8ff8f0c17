"""Groups of settings about content, and what all groups share. `settings.py` joins and reads
them."""

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


class IpfsSettings(Group):
    """An external IPFS node; without one, on-api runs its own (`NodeSettings`)."""

    rpc_url: str | None = Field(
        None, description="RPC URL of an external Kubo node, e.g. http://127.0.0.1:5001"
    )
    gateway_url: str | None = Field(
        None, description="Gateway URL of that Kubo node, e.g. http://127.0.0.1:8080"
    )
    rpc_auth: SecretStr | None = Field(
        None, description="RPC credentials for that node: `bearer:TOKEN` or `basic:USER:PASSWORD`."
    )
    # So long not because of the network: a process with many uploads may only notice seconds later
    # that it is connected.
    connect_timeout: Seconds = Field(
        10, description="Seconds to wait for a connection to the node."
    )
    control_timeout: Seconds = Field(
        10, description="Seconds to wait for the response to a short request to the node."
    )
    stall_timeout: Seconds = Field(
        30, description="Seconds without progress after which a transfer is aborted."
    )
    finish_timeout: Seconds = Field(
        300,
        description="Seconds that the node may take to store and pin a file after receiving it.",
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
        None, description="Path of the `ipfs` program; by default, it is searched for, or built."
    )
    network: Literal["private", "public"] = Field(
        "private",
        description="`private`: listens on loopback only, without peers. `public`: joins the IPFS"
        " network.",
    )
    rpc_port: Port = Field(5001, description="Loopback port of the node's RPC API.")
    gateway_port: Port = Field(8080, description="Loopback port of the node's gateway.")
    swarm_port: Port = Field(
        4001, description="Port for connections from other IPFS nodes (`public` only)."
    )
    storage_max: str = Field(
        "1TB",
        pattern=r"^\d+(\.\d+)?[kKMGTP]?i?B$",
        description="Maximum size of the node's repo (Kubo's StorageMax).",
    )
    min_free: int = Field(
        1 * GB,
        ge=0,
        le=2**62,
        description="Bytes of disk space to keep free: below this, uploads fail with status 507.",
    )
    start_timeout: Seconds = Field(60, description="Seconds that the node may take to start.")
    shutdown_timeout: Seconds = Field(30, description="Seconds that the node may take to stop.")


class FilesSettings(Group):
    """Uploads."""

    default_visibility: Literal["public", "private"] = Field(
        "public", description="Visibility of an upload that does not specify one."
    )
    max_size: int = Field(100 * GB, ge=1, le=2**62, description="Maximum size of a file in bytes.")
    idle_timeout: Seconds = Field(
        60, description="Seconds without data from the client after which an upload is aborted."
    )
    lease_seconds: int = Field(
        120,
        ge=10,
        le=3600,
        description="Lifetime in seconds of an upload's lease, which is renewed while the upload"
        " runs.",
    )
    bundle_below: int = Field(
        256 * KIB,
        ge=0,
        le=MIB,
        description="Maximum size in bytes of uploads that may share a pin under load; 0: never"
        " share pins.",
    )
    max_parts: int = Field(
        1000, ge=1, le=10_000, description="Maximum number of parts in a multipart upload."
    )
    answers_bytes: int = Field(
        16 * MIB,
        ge=0,
        le=2**40,
        description="Bytes of memory that each process uses to cache file metadata; 0: no cache.",
    )


class PinsSettings(Group):
    """Pins whose content has to be fetched from other IPFS nodes."""

    deadline: int = Field(
        86_400,
        ge=1,
        le=365 * 86_400,
        description="Seconds after which a pin fails if its content was not found.",
    )
    patience: Seconds = Field(
        60,
        description="Seconds without a new block after which a fetch is paused in favour of"
        " another one.",
    )
    concurrency: int = Field(
        16, ge=1, le=1000, description="Maximum number of simultaneous fetches per worker."
    )
    dial_private: bool = Field(
        False, description="Also dial origins with loopback, private and link-local addresses."
    )
    delegates: list[Annotated[str, Field(pattern=r"^/.+/p2p/[A-Za-z0-9]+$")]] = Field(
        default=[],
        max_length=20,
        description="Node addresses to give to clients, each ending in /p2p/ID; default: the"
        " node's own.",
    )


class ImportsSettings(Group):
    """Imports from other services, and the HTTP requests that they make."""

    at_once: int = Field(
        4,
        ge=1,
        le=100,
        description="Maximum number of imports that a worker processes at the same time.",
    )
    concurrency: int = Field(
        16,
        ge=1,
        le=256,
        description="Maximum number of items of an import that are processed at the same time.",
    )
    patience: Seconds = Field(
        30,
        description="Seconds without a new block over IPFS after which a gateway is tried instead.",
    )
    deadline: int = Field(
        21_600, ge=1, le=30 * 86_400, description="Seconds after which an item fails."
    )
    max_items: int = Field(
        1_000_000, ge=1, le=2**31, description="Maximum number of items in an import."
    )
    allow_private: bool = Field(
        False, description="Also allow http:// URLs and loopback, private and link-local addresses."
    )
    connect_timeout: Seconds = Field(
        10, description="Seconds to wait for a connection to another service."
    )
    read_timeout: Seconds = Field(
        30, description="Seconds without data from the other service after which a request fails."
    )
    total_timeout: Seconds = Field(
        120, description="Seconds for a complete response that does not carry content."
    )
    block_timeout: Seconds = Field(
        120, description="Seconds in which a gateway must send a block (at most 2 MiB)."
    )
    retries: int = Field(4, ge=0, le=20, description="Number of retries after a temporary failure.")
    longest_pause: Seconds = Field(
        60, description="Maximum seconds between retries, regardless of Retry-After."
    )
    max_answer: int = Field(
        32 * MIB,
        ge=64 * KIB,
        le=1024 * MIB,
        description="Maximum size in bytes of a response that does not carry content.",
    )
    max_list: int = Field(
        16 * MIB, ge=1, le=256 * MIB, description="Maximum size in bytes of a list of CIDs."
    )


class WorkerSettings(Group):
    """Background work: fetching pins, unpinning, garbage collection."""

    embedded: bool = Field(
        True,
        description="Run a worker inside `on-api serve`; if false, run `on-api worker` separately.",
    )
    poll: Seconds = Field(
        0.5,
        description="Minimum seconds between two checks for scheduled work; new work starts at"
        " once.",
    )
    lease_seconds: int = Field(
        30,
        ge=2,
        le=3600,
        description="Lifetime in seconds of a job's lease; after a crash, jobs resume when it"
        " expires.",
    )


class GcSettings(Group):
    """Garbage collection of unreferenced content."""

    grace: int = Field(
        3600,
        ge=0,
        le=365 * 86_400,
        description="Seconds between the last reference to a content and its unpinning.",
    )
    interval: int = Field(
        86_400,
        ge=0,
        le=365 * 86_400,
        description="Seconds between garbage collections; 0: never run it.",
    )
    patience: Seconds = Field(
        60, description="Seconds to wait for uploads in progress before a collection is postponed."
    )
    quarantine: int = Field(
        86_400,
        ge=0,
        le=365 * 86_400,
        description="Seconds for which `fsck` keeps an orphaned pin after it was first found.",
    )


class TrafficSettings(Group):
    """Traffic accounting and egress budgets."""

    flush_interval: Seconds = Field(
        2, le=60, description="Seconds between two updates of the traffic counts in the database."
    )
    over_budget: Literal["refuse", "redirect", "allow"] = Field(
        "refuse",
        description="Action when a budget is exceeded; `redirect` sends public content to the"
        " fallback gateway.",
    )
    instance_budget: int | None = Field(
        None,
        ge=0,
        le=2**62,
        description="Egress budget of the whole instance in bytes per calendar month.",
    )
    price_per_gb: float | None = Field(
        None,
        ge=0,
        le=1e6,
        description="Your cost of 10^9 bytes of egress, for the traffic reports.",
    )
    currency: str = Field(
        "EUR", pattern=r"^[A-Z]{3}$", description="Currency of that price (ISO 4217)."
    )
    hours_kept: int = Field(
        35,
        ge=1,
        le=3650,
        description="Days after which hourly counts are merged into daily counts.",
    )
    days_kept: int = Field(
        400,
        ge=31,
        le=36_500,
        description="Days after which daily counts are merged into monthly counts.",
    )


class GatewaySettings(Group):
    """The public gateway at `/ipfs`."""

    policy: Literal["listed", "local", "closed"] = Field(
        "listed",
        description="`listed`: serve public files and pins; `local`: all content on the node;"
        " `closed`: to keys only.",
    )
    cache_bytes: int = Field(
        32 * MIB,
        ge=0,
        le=2**40,
        description="Bytes of memory that each process uses to cache small, popular responses; 0:"
        " no cache.",
    )
    fallback_url: str | None = Field(
        None, description="Public gateway to redirect to, e.g. https://ipfs.io, for `redirect`."
    )
    rate_per_ip: float = Field(
        0, ge=0, le=1e6, description="Maximum requests per second from an address; 0: no limit."
    )
    rate_per_key: float = Field(
        0, ge=0, le=1e6, description="Maximum requests per second with a key; 0: no limit."
    )
    connections_per_ip: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Maximum number of simultaneous responses to an address; 0: no limit.",
    )

    accel_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Secret shared with nginx, which then fetches large public responses from the"
        " node.",
    )
    accel_min_bytes: int = Field(
        MIB, ge=0, le=2**60, description="Minimum size in bytes of responses that nginx fetches."
    )

    @field_validator("fallback_url")
    @classmethod
    def _is_plain_http_url(cls, value: str | None) -> str | None:
        return None if value is None else http_origin(value)


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
