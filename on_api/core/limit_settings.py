"""Settings that limit clients: their requests to the API, and what a new account may use."""

from __future__ import annotations

from pydantic import Field

from on_api.core.setting_groups import Group


class LimitsSettings(Group):
    """Requests to the API, and what a new account may use."""

    requests_per_key: int = Field(
        0, ge=0, le=10**6, description="Requests a minute with one key; 0: no limit."
    )
    requests_per_address: int = Field(
        0, ge=0, le=10**6, description="From one address (IPv6: one /64); 0: no limit."
    )
    burst_seconds: int = Field(
        60, ge=1, le=3600, description="An unused rate is saved up for so many seconds."
    )
    new_account_quota: int | None = Field(
        None, ge=0, le=2**62, description="Bytes that a new account may store; else no limit."
    )
    new_account_budget: int | None = Field(
        None,
        ge=0,
        le=2**62,
        description="Bytes that a new account may send out a calendar month; else no limit.",
    )
