"""Schemas of shares."""

from __future__ import annotations

import uuid
from typing import Annotated, Self

from pydantic import AfterValidator, Field

from on_api.core.models import Share as ShareRow
from on_api.core.schemas.common import Answer, GivenMoment, Moment, Request, Text
from on_api.core.services.shares.shares import PASSWORD_LENGTH

MAX_DOWNLOADS = 10**9

_FILE = "The ID of the file that the link leads to."
_EXPIRES = "When the link expires; null if it never does."
_MAX_DOWNLOADS = (
    "How many downloads the link allows in total; null if there is no limit. Range requests"
    " count as one download until they add up to the size of the file; a request for the whole"
    " file always begins a new one."
)


def _can_be_in_a_header(password: str) -> str:
    if password != password.strip():
        raise ValueError(
            "must not begin or end with a space, because HTTP headers can't transmit it"
        )
    return password


class Share(Answer):
    """A share link to a file, without its secret."""

    id: uuid.UUID = Field(description="The ID of the link. It never changes.")
    file_id: uuid.UUID = Field(description=_FILE)
    prefix: str = Field(
        description="The first characters of the link's token.", examples=["a1B2c3"]
    )
    expires_at: Moment | None = Field(description=_EXPIRES)
    max_downloads: int | None = Field(description=_MAX_DOWNLOADS)
    downloads: int = Field(description="The number of downloads started so far.")
    has_password: bool = Field(description="Whether the link requires a password.")
    created_at: Moment = Field(description="When the link was created.")

    @classmethod
    def of(cls, row: ShareRow) -> Self:
        """Return a row's schema."""
        return cls(
            id=row.id,
            file_id=row.file_id,
            prefix=row.prefix,
            expires_at=row.expires_at,
            max_downloads=row.max_downloads,
            downloads=row.downloads,
            has_password=row.password_hash is not None,
            created_at=row.created_at,
        )


class ShareCreated(Share):
    """A new share link with its URL, which is only shown in this response."""

    url: str = Field(
        description="The URL of the link. Anyone who has it can download the file; it can't be"
        " shown again.",
        examples=["https://files.example/s/a1B2c3…"],
    )


class ShareCreate(Request):
    """A new share link to one of your files."""

    file_id: uuid.UUID = Field(description=_FILE)
    expires_at: GivenMoment | None = Field(None, description=_EXPIRES)
    max_downloads: int | None = Field(None, ge=1, le=MAX_DOWNLOADS, description=_MAX_DOWNLOADS)
    password: Annotated[Text, AfterValidator(_can_be_in_a_header)] | None = Field(
        None,
        min_length=1,
        max_length=PASSWORD_LENGTH,
        description="A password that is required in addition to the link; null for none.",
        examples=["correct horse"],
    )


class ShareList(Answer):
    """A page of links, newest first."""

    count: int = Field(description="The total number of matching links.")
    items: list[Share] = Field(description="The newest matching links.")
