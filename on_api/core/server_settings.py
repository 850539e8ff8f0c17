"""Groups of settings about the server: its database, accounts, connections and logs.
`settings.py` joins and reads them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from on_api.core.setting_groups import MIB, Group, Seconds


class DatabaseSettings(Group):
    """Database connections."""

    pool_size: int = Field(
        20, ge=1, le=1000, description="Number of connections that each process keeps open."
    )
    max_overflow: int = Field(
        25,
        ge=0,
        le=1000,
        description="Number of additional connections that each process may open under load.",
    )
    connect_timeout: int = Field(
        5, ge=1, le=60, description="Seconds to wait for a new connection."
    )
    pool_timeout: Seconds = Field(
        10, description="Seconds to wait for a free connection from the pool."
    )
    statement_timeout: Seconds = Field(
        30, description="Seconds after which PostgreSQL cancels a statement."
    )
    lock_timeout: Seconds = Field(
        10, description="Seconds to wait for a lock; on SQLite, to wait for other writers."
    )


class AuthSettings(Group):
    """Accounts, passwords and short-lived access tokens."""

    token_lifetime: int = Field(
        3600,
        ge=60,
        le=86_400,
        description="Lifetime in seconds of the access token from a password login.",
    )
    scrypt_log_n: int = Field(
        15, ge=10, le=18, description="Work factor (log2 of N) of scrypt for new password hashes."
    )
    passphrase_log_n: int = Field(
        18,
        ge=10,
        le=18,
        description="Work factor of scrypt for the passphrases of private files; age's default is"
        " 18.",
    )
    scrypt_memory: int = Field(
        256 * MIB,
        ge=32 * MIB,
        description="Bytes of memory that each process may use for hashing passwords and"
        " passphrases.",
    )
    scrypt_waiting: int = Field(
        100,
        ge=1,
        le=10_000,
        description="Maximum number of waiting password checks, separately for known and unknown"
        " clients.",
    )
    scrypt_per_address: int = Field(
        8,
        ge=0,
        le=10_000,
        description="Maximum waiting checks of unknown clients per address (IPv6: per /64); 0: no"
        " limit.",
    )
    failures_allowed: int = Field(
        5,
        ge=1,
        le=100,
        description="Wrong passwords allowed per username and address before a delay is imposed.",
    )
    failure_pause: int = Field(
        60,
        ge=1,
        le=86_400,
        description="Seconds of the first delay; each further delay is twice as long.",
    )


class ConnectionSettings(Group):
    """Client connections and their timeouts."""

    most: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Maximum number of connections per process; further ones are answered with"
        " 503.",
    )
    most_per_address: int = Field(
        1000,
        ge=0,
        le=1_000_000,
        description="Connections per address (IPv6: /64) unless proxies are trusted; 0: no limit.",
    )
    head_timeout: Seconds = Field(
        30,
        description="Seconds to receive a request's header, from its first byte or from"
        " connecting.",
    )
    idle_timeout: Seconds = Field(
        75, description="Seconds that an idle connection is kept open for the next request."
    )
    body_idle_timeout: Seconds = Field(
        30,
        description="Seconds without data after which a request body fails (JSON and forms, not"
        " uploads).",
    )
    body_timeout: Seconds = Field(
        60, description="Seconds to receive such a request body completely."
    )
    send_timeout: Seconds = Field(
        60,
        description="Seconds without the client receiving data after which a response is aborted.",
    )


class CorsSettings(Group):
    """Cross-origin requests from browsers."""

    origins: list[str] = Field(
        default=[], description='Allowed origins, e.g. ["https://app.example"], or ["*"].'
    )
    credentials: bool = Field(
        False, description="Allow cookies and HTTP authentication; can't be combined with `*`."
    )

    @model_validator(mode="after")
    def _never_any_origin_with_credentials(self) -> Self:
        if self.credentials and "*" in self.origins:
            msg = "ON_API_CORS__CREDENTIALS can't be combined with the origin *"
            raise ValueError(msg)
        return self


class LogSettings(Group):
    """Logs, which are written to standard error."""

    format: Literal["console", "json"] = Field(
        "console", description="Format of the log; `json` writes one object per line."
    )
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Minimum level of log messages."
    )
    priority: bool = Field(
        False, description="Begin each line with its priority for journald, which removes it."
    )
