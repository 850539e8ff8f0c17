"""Settings that limit clients: their requests to the API, and what a new account may use."""

from __future__ import annotations

from pydantic import Field

from on_api.core.setting_groups import Group


class LimitsSettings(Group):
    """Requests to the API, and what a new account may use."""

    requests_per_key: int = Field(
        0, ge=0, le=10**6, description="Maximum requests per minute with a key; 0: no limit."
    )
    requests_per_address: int = Field(
        0,
        ge=0,
        le=10**6,
        description="Maximum requests per minute from an address (IPv6: per /64); 0: no limit.",
    )
    burst_seconds: int = Field(
        60,
        ge=1,
        le=3600,
        description="Seconds for which an unused rate accumulates, to be spent at once.",
    )
    new_account_quota: int | None = Field(
        None, ge=0, le=2**62, description="Bytes that a new account may store; default: no limit."
    )
    new_account_budget: int | None = Field(
        None,
        ge=0,
        le=2**62,
        description="Bytes that a new account may send out per calendar month; default: no limit.",
    )
