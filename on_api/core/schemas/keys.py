"""Schemas of API keys."""

from __future__ import annotations

import uuid

from pydantic import Field

from on_api.core.schemas.common import Absent, Answer, ByteCount, GivenMoment, Moment, Request, Text
from on_api.core.services.accounts.access import Scope

_SCOPES = "The scopes of the key."
_EXPIRES = "When the key expires; null if it never does."
_MAX_USES = "How many requests the key may make in total; null if there is no limit."
_MAX_BYTES = "How many bytes may be uploaded with the key in total; null if there is no limit."

_EGRESS_BUDGET = (
    "How many bytes may be downloaded with the key in a calendar month; null if there is no limit."
)


class Key(Answer):
    """An API key, without its secret."""

    id: uuid.UUID = Field(description="The ID of the key. It never changes.")
    name: str = Field(description="Your name for the key.", examples=["laptop"])
    prefix: str = Field(description="The first characters of the key.", examples=["onapi_a1B2c3"])
    scopes: list[Scope] = Field(description=_SCOPES)
    expires_at: Moment | None = Field(description=_EXPIRES)
    max_uses: int | None = Field(description=_MAX_USES)
    max_bytes: int | None = Field(description=_MAX_BYTES)
    egress_budget: int | Absent = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description=f"{_EGRESS_BUDGET} Only present if the key has such a limit.",
    )
    last_used_at: Moment | None = Field(
        description="When the key was last used, accurate to a minute; null if it never was."
    )
    created_at: Moment = Field(description="When the key was created.")


class KeyCreated(Key):
    """A new API key with its secret, which is only shown in this response."""

    key: str = Field(description="The secret. Store it safely: it can't be shown again.")


class KeyCreate(Request):
    """A new API key. It can't have more permissions, or live longer, than the key that creates
    it."""

    name: Text = Field(
        min_length=1, max_length=255, description="Your name for the key.", examples=["laptop"]
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

    count: int = Field(description="The total number of keys.")
    items: list[Key] = Field(description="The newest keys.")
