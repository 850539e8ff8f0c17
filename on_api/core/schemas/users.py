"""Schemas of accounts."""

from __future__ import annotations

import uuid

from pydantic import Field

from on_api.core.schemas.auth import Password, Username
from on_api.core.schemas.common import Answer, ByteCount, Moment, Request, left_out

Quota = ByteCount | None
_QUOTA = "The user's storage quota in bytes; null if there is no limit."
_BUDGET = (
    "The egress budget in bytes: how much of the user's content may be sent in a calendar month;"
    " null if there is no limit."
)


class User(Answer):
    """A user account."""

    id: uuid.UUID = Field(description="The ID of the user. It never changes.")
    username: str = Field(description="The username, in lower case.", examples=["ada"])
    is_admin: bool = Field(description="Whether the user is an administrator.")
    active: bool = Field(description="Whether the user's keys and password are accepted.")
    storage_quota: int | None = Field(description=_QUOTA)
    egress_budget: int | None = Field(description=_BUDGET)
    created_at: Moment = Field(description="When the account was created.")


class UserCreate(Request):
    """A new user account."""

    username: Username
    password: Password
    is_admin: bool = Field(False, description="Whether the new user is an administrator.")
    storage_quota: Quota = left_out(f"{_QUOTA} If omitted, the operator's default applies.")
    egress_budget: Quota = left_out(f"{_BUDGET} If omitted, the operator's default applies.")


class UserUpdate(Request):
    """Changes that an administrator may make to an account; omitted fields stay unchanged.

    `active: false` disables the user's API keys and ends their login sessions; a new password ends
    the login sessions.
    """

    active: bool = left_out("Whether the user's keys and password are accepted.")
    is_admin: bool = left_out("Whether the user is an administrator.")
    password: Password = left_out(
        "The new password, 8 to 256 characters; setting it ends the user's login sessions."
    )
    storage_quota: Quota = left_out(_QUOTA)
    egress_budget: Quota = left_out(_BUDGET)


class MeUpdate(Request):
    """Changes that users may make to their own account."""

    username: Username


class PasswordChange(Request):
    """A new password, confirmed by the current one."""

    current_password: str = Field(max_length=256, description="The current password.")
    new_password: Password


class UserList(Answer):
    """A page of accounts, newest first."""

    count: int = Field(description="The total number of matching accounts.")
    items: list[User] = Field(description="The newest matching accounts.")


class StorageUsage(Answer):
    """The user's storage on the node."""

    bytes: int = Field(
        description="The bytes that count towards the quota: each content once, with its overhead"
        " on the node, and data that failed uploads have left until it is removed."
    )
    quota: int | None = Field(description=_QUOTA)


class EgressUsage(Answer):
    """Outgoing traffic in the current month."""

    bytes: int = Field(
        description="Bytes sent this month. This is never less than what was delivered: traffic in"
        " progress is counted some megabytes in advance, and these are included in `reserved`."
    )
    reserved: int = Field(
        description="The part of `bytes` that was counted in advance for traffic in progress or"
        " just finished. What is not used is returned within a few seconds."
    )
    budget: int | None = Field(description=_BUDGET)
    forecast: int = Field(
        description="The projected bytes at the end of the month at the average rate so far,"
        " without `reserved`: bytes · length of the month / elapsed time (at least one hour)."
    )
    period_end: Moment = Field(description="When the month ends.")


class Usage(Answer):
    """A user's storage and traffic."""

    storage: StorageUsage = Field(description="The present storage usage.")
    egress: EgressUsage = Field(description="The traffic of the current month.")
