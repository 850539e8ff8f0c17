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
        raise ValueError("not a valid age recipient (age1…)") from None


MOST_RECIPIENTS = 50
Recipients = Annotated[
    list[Annotated[str, AfterValidator(_recipient)]],
    Field(min_length=1, max_length=MOST_RECIPIENTS),
]
"""X25519 recipients of age's format."""


class StoredFile(Answer):
    """A file."""

    id: uuid.UUID = Field(description="The ID of the file. It never changes.")
    cid: str = Field(
        description="The root CID of the file's DAG on the node: CIDv1 in base32.",
        examples=["bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"],
    )
    source_cid: str | None = Field(
        description="The CID exactly as given in the request, if one was given."
    )
    name: str = Field(description="The name of the file.", examples=["地図.pdf"])
    size: int = Field(description="The size in bytes of the file as uploaded.", examples=[11])
    media_type: str = Field(
        description="The media type: as uploaded, or otherwise detected.",
        examples=["application/pdf"],
    )
    sha256: str = Field(description="The SHA-256 hash of the uploaded bytes, in hexadecimal.")
    visibility: Visibility = Field(
        description="`public`: stored unencrypted on IPFS. `private`: stored encrypted."
    )
    meta: dict[str, Any] = Field(
        description="Your own metadata, as a JSON object.", examples=[{"project": "atlas"}]
    )
    created_at: Moment = Field(
        description="When the upload was completed; strictly increasing for each user."
    )
    source_created_at: Moment | Absent = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="When the file was created at the service it was imported from; only present"
        " for imported files.",
    )
    gateway_url: str | None = Field(
        description="The URL of the content at on-api's public IPFS gateway."
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
    """The files from one upload, in the order in which they were sent."""

    items: list[StoredFile] = Field(description="The files.")


class FileList(Answer):
    """A page of files, newest first."""

    count: int = Field(
        description="The total number of matching files, with `before` and `after` applied."
    )
    items: list[StoredFile] = Field(description="The newest matching files.")


class FileUpdate(Request):
    """Changes to a file; omitted fields stay unchanged."""

    name: FileName = left_out("The new name, 1 to 255 characters.")
    meta: Meta = left_out("The new JSON object; it replaces the old one completely.")
    visibility: Visibility = left_out(
        "The new visibility. A change runs as a background job: the file is stored again,"
        " encrypted or unencrypted."
    )


class FileVisibility(Answer):
    """The visibility of a file, and the progress of a change to it."""

    visibility: Visibility = Field(description="The present visibility.")
    changing_to: Visibility | None = Field(
        description="The requested visibility; null if no change was requested."
    )
    status: Literal["settled", "waiting", "failed"] = Field(
        description="`settled`: the file has the requested visibility. `waiting`: the change is in"
        " progress. `failed`: the change failed and the file is unchanged; request it again,"
        " or request the present visibility to dismiss the failure."
    )
    details: str | None = Field(
        description="Why the change is waiting or has failed, if there is a reason."
    )
    notice: str | None = Field(description="Limitations and side effects of the change.")

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

    change: FileVisibility = Field(
        description="The progress of the change, which continues in the background; see `GET"
        " …/visibility`."
    )

    @classmethod
    def with_change(cls, row: FileRow, gateway: str, change: VisibilityChange) -> Self:
        """Return a file as it is, with the change that is under way."""
        shown = StoredFile.of(row, gateway).model_dump()
        return cls(**shown, change=FileVisibility.of(row, change))


def _visibility(value: str) -> Visibility:
    return "private" if value == PRIVATE else "public"
