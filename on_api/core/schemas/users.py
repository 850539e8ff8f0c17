"""Schemas of accounts."""

from __future__ import annotations

import uuid

from pydantic import Field

from on_api.core.schemas.auth import Password, Username
from on_api.core.schemas.common import Answer, ByteCount, Moment, Request, left_out

Quota = ByteCount | None
_QUOTA = "Bytes that the user may store; null: no limit."
_BUDGET = "Bytes that the user's content may send out in a calendar month; null: no limit."


class User(Answer):
    """An account."""

    id: uuid.UUID = Field(description="Never changes.")
    username: str = Field(description="In lower case.", examples=["ada"])
    is_admin: bool = Field(description="Whether the user may administer on-api.")
    active: bool = Field(description="Whether the user's keys and password work.")
    storage_quota: int | None = Field(description=_QUOTA)
    egress_budget: int | None = Field(description=_BUDGET)
    created_at: Moment = Field(description="When the account was made.")


class UserCreate(Request):
    """A new account."""

    username: Username
    password: Password
    is_admin: bool = Field(False, description="Make an administrator.")
    storage_quota: Quota = left_out(f"{_QUOTA} Left out: the operator's default.")
    egress_budget: Quota = left_out(f"{_BUDGET} Left out: the operator's default.")


class UserUpdate(Request):
    """Changes that an administrator may make; fields that are left out stay as they are.

    `active: false` stops the user's keys and ends their logins; a new password ends the logins.
    """

    active: bool = left_out("Whether the user's keys and password work.")
    is_admin: bool = left_out("Whether the user may administer on-api.")
    password: Password = left_out("A new password, 8 to 256 characters; ends the user's logins.")
    storage_quota: Quota = left_out(_QUOTA)
    egress_budget: Quota = left_out(_BUDGET)


class MeUpdate(Request):
    """Changes that users may make to their own account."""

    username: Username


class PasswordChange(Request):
    """A new password, proved by the old one."""

    current_password: str = Field(max_length=256, description="The password until now.")
    new_password: Password


class UserList(Answer):
    """A page of accounts, newest first."""

    count: int = Field(description="How many match.")
    items: list[User] = Field(description="The newest of them.")


class StorageUsage(Answer):
    """Storage that a user has on the node."""

    bytes: int = Field(
        description="Bytes charged: each content once, with its overhead on the node; and what "
        "failed uploads have left there, until it is removed."
    )
    quota: int | None = Field(description=_QUOTA)


class EgressUsage(Answer):
    """Traffic that went out this month."""

    bytes: int = Field(
        description="Bytes sent this month. Never less than what was delivered: what is being sent "
        "right now is counted some megabytes ahead, which are in `reserved`."
    )
    reserved: int = Field(
        description="Of `bytes`: taken ahead for what is being sent or was sent a moment ago. What "
        "isn't used comes back within some seconds."
    )
    budget: int | None = Field(description=_BUDGET)
    forecast: int = Field(
        description="Bytes by the month's end at this month's rate so far, without `reserved`: "
        "bytes · length of the month / time passed of it (at least an hour)."
    )
    period_end: Moment = Field(description="When the month ends.")


class Usage(Answer):
    """A user's usage."""

    storage: StorageUsage = Field(description="Now.")
    egress: EgressUsage = Field(description="This month.")
