"""Schemas of API keys."""

from __future__ import annotations

import uuid

from pydantic import Field

from on_api.core.schemas.common import Absent, Answer, ByteCount, GivenMoment, Moment, Request, Text
from on_api.core.services.accounts.access import Scope

_SCOPES = "What the key may do."
_EXPIRES = "When the key ends; null: never."
_MAX_USES = "Requests that the key may make in all; null: no limit."
_MAX_BYTES = "Bytes that may be uploaded with the key in all; null: no limit."

_EGRESS_BUDGET = "Bytes that may be downloaded with the key in a calendar month; null: no limit."


class Key(Answer):
    """A key, without its secret."""

    id: uuid.UUID = Field(description="Never changes.")
    name: str = Field(description="Your name for it.", examples=["laptop"])
    prefix: str = Field(description="The key's first characters.", examples=["onapi_a1B2c3"])
    scopes: list[Scope] = Field(description=_SCOPES)
    expires_at: Moment | None = Field(description=_EXPIRES)
    max_uses: int | None = Field(description=_MAX_USES)
    max_bytes: int | None = Field(description=_MAX_BYTES)
    egress_budget: int | Absent = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description=f"{_EGRESS_BUDGET} Only there if it has one.",
    )
    last_used_at: Moment | None = Field(description="To the minute; null: never.")
    created_at: Moment = Field(description="When the key was made.")


class KeyCreated(Key):
    """A new key with its secret, which is shown this once."""

    key: str = Field(description="The secret. Keep it: it can't be shown again.")


class KeyCreate(Request):
    """A new key. It can't do more, or live longer, than the key that makes it."""

    name: Text = Field(
        min_length=1, max_length=255, description="Your name for it.", examples=["laptop"]
    )
    scopes: set[Scope] = Field(
        min_length=1, description=_SCOPES, examples=[["files:read", "files:write"]]
    )
    expires_at: GivenMoment | None = Field(None, description=_EXPIRES)
    max_uses: int | None = Field(None, ge=1, le=2**62, description=_MAX_USES)
    max_bytes: ByteCount | None = Field(None, description=_MAX_BYTES)
    egress_budget: ByteCount | None = Field(None, description=_EGRESS_BUDGET)


class KeyList(Answer):
    """A page of keys, newest first."""

    count: int = Field(description="How many there are.")
    items: list[Key] = Field(description="The newest of them.")
