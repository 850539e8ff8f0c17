"""Schemas of shares."""

from __future__ import annotations

import uuid
from typing import Annotated, Self

from pydantic import AfterValidator, Field

from on_api.core.models import Share as ShareRow
from on_api.core.schemas.common import Answer, GivenMoment, Moment, Request, Text
from on_api.core.services.shares.shares import PASSWORD_LENGTH

MAX_DOWNLOADS = 10**9

_FILE = "The file that the link leads to."
_EXPIRES = "When the link ends; null: never."
_MAX_DOWNLOADS = (
    "Downloads that the link allows in all; null: no limit. One lasts until as many bytes have "
    "gone out as the file has, in whatever parts, or all of it is asked for again."
)


def _can_be_in_a_header(password: str) -> str:
    if password != password.strip():
        raise ValueError("must not begin or end with a space: no header can carry that")
    return password


class Share(Answer):
    """A link to a file, without its secret."""

    id: uuid.UUID = Field(description="Never changes.")
    file_id: uuid.UUID = Field(description=_FILE)
    prefix: str = Field(description="The first characters of its token.", examples=["a1B2c3"])
    expires_at: Moment | None = Field(description=_EXPIRES)
    max_downloads: int | None = Field(description=_MAX_DOWNLOADS)
    downloads: int = Field(description="Downloads begun so far.")
    has_password: bool = Field(description="Whether it asks for a password.")
    created_at: Moment = Field(description="When the link was made.")

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
    """A new link with its URL, which is shown this once."""

    url: str = Field(
        description="The link. Whoever has it has the file; it can't be shown again.",
        examples=["https://files.example/s/a1B2c3…"],
    )


class ShareCreate(Request):
    """A new link to one of your files."""

    file_id: uuid.UUID = Field(description=_FILE)
    expires_at: GivenMoment | None = Field(None, description=_EXPIRES)
    max_downloads: int | None = Field(None, ge=1, le=MAX_DOWNLOADS, description=_MAX_DOWNLOADS)
    password: Annotated[Text, AfterValidator(_can_be_in_a_header)] | None = Field(
        None,
        min_length=1,
        max_length=PASSWORD_LENGTH,
        description="What a downloader must know besides the link; null: nothing.",
        examples=["correct horse"],
    )


class ShareList(Answer):
    """A page of links, newest first."""

    count: int = Field(description="How many match.")
    items: list[Share] = Field(description="The newest of them.")
