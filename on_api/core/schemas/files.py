"""Files."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field

from on_api.core.crypto.age import BadKey, X25519Recipient
from on_api.core.models import File as FileRow
from on_api.core.models.file import PRIVATE
from on_api.core.schemas.common import Answer, Meta, Moment, Request, Text

Visibility = Literal["public", "private"]
FileName = Annotated[
    Text,
    Field(min_length=1, max_length=255, description="1 to 255 characters.", examples=["地図.pdf"]),
]


def _recipient(value: str) -> str:
    try:
        return str(X25519Recipient.parse(value))
    except BadKey:
        raise ValueError("not a recipient as age writes it: age1…") from None


MOST_RECIPIENTS = 50
Recipients = Annotated[
    list[Annotated[str, AfterValidator(_recipient)]],
    Field(min_length=1, max_length=MOST_RECIPIENTS),
]
"""X25519 recipients of age's format."""


class File(Answer):
    """A file."""

    id: uuid.UUID = Field(description="Never changes.")
    cid: str = Field(
        description="Root of the file's DAG on the node: CIDv1, base32.",
        examples=["bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"],
    )
    source_cid: str | None = Field(description="The CID as you gave it, where you gave one.")
    name: str = Field(description="The file's name.", examples=["地図.pdf"])
    size: int = Field(description="Bytes of the file as you sent it.", examples=[11])
    media_type: str = Field(description="As sent, else found out.", examples=["application/pdf"])
    sha256: str = Field(description="Hash of the bytes you sent, in hex.")
    visibility: Visibility = Field(description="`public`: plain on IPFS. `private`: encrypted.")
    meta: dict[str, Any] = Field(
        description="Your own JSON object.", examples=[{"project": "atlas"}]
    )
    created_at: Moment = Field(description="When it was complete; strictly rising for each user.")
    gateway_url: str | None = Field(description="Where the bytes are seen on the IPFS gateway.")

    @classmethod
    def of(cls, row: FileRow, gateway: str) -> Self:
        """Show a row; `gateway` is the origin at which content is seen."""
        return cls(
            id=row.id,
            cid=row.cid,
            source_cid=row.source_cid,
            name=row.name,
            size=row.size,
            media_type=row.media_type,
            sha256=row.sha256.hex(),
            visibility="private" if row.visibility == PRIVATE else "public",
            meta=row.meta,
            created_at=row.created_at,
            gateway_url=None if row.visibility == PRIVATE else f"{gateway}/ipfs/{row.cid}",
        )


class FileItems(Answer):
    """Several files from one upload, in the order they were sent."""

    items: list[File] = Field(description="Each file.")


class FileList(Answer):
    """A page of files, newest first."""

    count: int = Field(description="How many match, `before` and `after` included.")
    items: list[File] = Field(description="The newest of them.")


class FileUpdate(Request):
    """What may be changed; what is not named stays."""

    name: FileName = Field("")
    meta: Meta = Field({})
