"""Schemas of files."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field
from typing_extensions import TypeAliasType

from on_api.core.crypto.age import BadKey, X25519Recipient
from on_api.core.models import File as FileRow
from on_api.core.models import VisibilityChange
from on_api.core.models.file import PRIVATE
from on_api.core.schemas.common import Absent, Answer, Meta, Moment, Request, Text, left_out
from on_api.core.services.files.files import FileFacts
from on_api.core.services.files.visibility import NOTICES, has_failed

Visibility = TypeAliasType("Visibility", Literal["public", "private"])
"""Type with a name of its own in the documents, so that generated clients have one type for it."""
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


class StoredFile(Answer):
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
    source_created_at: Moment | Absent = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="When it was made where it was imported from; only there if it was.",
    )
    gateway_url: str | None = Field(
        description="Where everyone may have the bytes: at on-api's own IPFS gateway."
    )

    @classmethod
    def of(cls, row: FileRow | FileFacts, gateway: str) -> Self:
        """Return a row's schema; `gateway` is the origin for the content's URL."""
        return cls(
            id=row.id,
            cid=row.cid,
            source_cid=row.source_cid,
            name=row.name,
            size=row.size,
            media_type=row.media_type,
            sha256=row.sha256.hex(),
            visibility=_visibility(row.visibility),
            meta=row.meta,
            created_at=row.created_at,
            source_created_at=row.source_created_at,
            gateway_url=None if row.visibility == PRIVATE else f"{gateway}/ipfs/{row.cid}",
        )


class StoredFiles(Answer):
    """Several files from one upload, in the order they were sent."""

    items: list[StoredFile] = Field(description="Each file.")


class FileList(Answer):
    """A page of files, newest first."""

    count: int = Field(description="How many match, `before` and `after` included.")
    items: list[StoredFile] = Field(description="The newest of them.")


class FileUpdate(Request):
    """Changes to a file; fields that are left out stay as they are."""

    name: FileName = left_out("A new name, 1 to 255 characters.")
    meta: Meta = left_out("A new JSON object; it replaces the old one as a whole.")
    visibility: Visibility = left_out(
        "Another one is a job: the file is stored anew, encrypted or plain."
    )


class FileVisibility(Answer):
    """Visibility of a file, and the one that it is being changed to."""

    visibility: Visibility = Field(description="Now.")
    changing_to: Visibility | None = Field(description="What was asked for; null: nothing.")
    status: Literal["settled", "waiting", "failed"] = Field(
        description="`settled`: as it was asked for. `waiting`: the job is under way. `failed`: it "
        "was given up, and the file is as it was; ask once more, or for what it is."
    )
    details: str | None = Field(description="Why it waits or has failed, where there is a reason.")
    notice: str | None = Field(description="What the change can't do, or does besides.")

    @classmethod
    def of(cls, row: FileRow, change: VisibilityChange | None) -> Self:
        """Return the progress of a file's change."""
        status: Literal["settled", "waiting", "failed"] = "settled"
        if change is not None:
            status = "failed" if has_failed(change) else "waiting"
        return cls(
            visibility=_visibility(row.visibility),
            changing_to=change and _visibility(change.visibility),
            status=status,
            details=change and change.details,
            notice=change and NOTICES[change.visibility],
        )


class FileChanging(StoredFile):
    """A file whose visibility is being changed."""

    change: FileVisibility = Field(description="See `GET …/visibility`; it goes on meanwhile.")

    @classmethod
    def with_change(cls, row: FileRow, gateway: str, change: VisibilityChange) -> Self:
        """Return a file as it is, with the change that is under way."""
        shown = StoredFile.of(row, gateway).model_dump()
        return cls(**shown, change=FileVisibility.of(row, change))


def _visibility(value: str) -> Visibility:
    return "private" if value == PRIVATE else "public"
