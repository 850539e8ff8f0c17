"""Schemas of imports."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SecretStr

from on_api.core.models import Import as ImportRow
from on_api.core.models import ImportItem as ItemRow
from on_api.core.providers.base import SourceSpec
from on_api.core.schemas.common import Answer, Moment, Request, Text, storable_text
from on_api.core.services.transfer.imports import ImportRequest, ImportState

ImportStatus = Literal["draft", "running", "paused", "done", "failed", "cancelled"]
ItemStatus = Literal["waiting", "moving", "done", "skipped", "failed"]
Route = Literal["auto", "ipfs", "gateway"]

MOST_IDENTITIES = 100
MOST_TEXT_LENGTH = 900_000


def _plain_secret(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().isprintable():
        raise ValueError("control characters are not allowed")
    return value


Url = Annotated[Text, Field(min_length=1, max_length=2048)]
Secret = Annotated[SecretStr, AfterValidator(_plain_secret), Field(min_length=1, max_length=8192)]
"""A credential of the source: stored sealed, never shown, erased once its list was read."""


class PinningApiSource(Request):
    """Any service that supports the IPFS Pinning Service API."""

    kind: Literal["pinning_api"] = Field(description="The kind of source.")
    endpoint: Url = Field(
        description="The base URL of the service: everything before `/pins`.",
        examples=["https://api.example/psa"],
    )
    token: Secret = Field(description="An access token for the service.")


class PinataSource(Request):
    """Pinata, through its own API."""

    kind: Literal["pinata"] = Field(description="The kind of source.")
    token: Secret = Field(description="A Pinata JWT with permission to list files.")
    endpoint: Url | None = Field(None, description="A different URL for Pinata's API.")


class KuboSource(Request):
    """The recursive pins of another Kubo node (administrators only)."""

    kind: Literal["kubo"] = Field(description="The kind of source.")
    endpoint: Url = Field(
        description="The URL of the node's RPC API.", examples=["https://kubo.example:5001"]
    )
    token: Secret | None = Field(
        None,
        description="The credentials for the RPC API: `bearer:TOKEN` or `basic:USER:PASSWORD`.",
    )


class CarSource(Request):
    """A CAR, which you send afterwards to `PUT …/car`."""

    kind: Literal["car"] = Field(description="The kind of source.")


class CidsSource(Request):
    """A list of CIDs: one per line, or CSV with names."""

    kind: Literal["cids"] = Field(description="The kind of source.")
    text: Annotated[str, AfterValidator(storable_text)] = Field(
        min_length=1,
        max_length=MOST_TEXT_LENGTH,
        description="The text of the list.",
        examples=["bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e notes.txt"],
    )


class OnApiSource(Request):
    """Another on-api instance. Its files are imported as files."""

    kind: Literal["on_api"] = Field(description="The kind of source.")
    endpoint: Url = Field(
        description="The base URL of the instance.", examples=["https://old.example"]
    )
    token: Secret = Field(description="A key with the scopes `files:read` and `pins:read`.")
    username: Text | None = Field(
        None,
        max_length=64,
        description="Your username at the source; with `password`, private files are imported"
        " together with their identities.",
    )
    password: Secret | None = Field(None, description="The password of that account.")
    identities: Annotated[list[Secret], Field(max_length=MOST_IDENTITIES)] | None = Field(
        None, description="Alternatively, the identities for private files: `AGE-SECRET-KEY-1…`."
    )


ImportSource = Annotated[
    PinningApiSource | PinataSource | KuboSource | CarSource | CidsSource | OnApiSource,
    Field(discriminator="kind"),
]


class ImportCreate(Request):
    """A new import."""

    source: ImportSource = Field(description="The source to import from.")
    route: Route = Field(
        "auto",
        description="How the content is fetched. `ipfs`: from the source's IPFS nodes. `gateway`:"
        " from a"
        " trustless gateway. `auto`: from the local node if it has the content, otherwise over"
        " IPFS, otherwise from the gateway.",
    )
    gateway_url: Url | None = Field(
        None,
        description="The URL of a trustless gateway. Every block is verified, so the gateway need"
        " not be trusted.",
        examples=["https://gateway.example"],
    )
    start: bool = Field(
        False, description="Whether to start at once; if false, you can check the preview first."
    )

    def as_request(self) -> ImportRequest:
        """Convert it for the service. Raises `BadRequest`."""
        given = self.source.model_dump(exclude_none=True)
        for name in ("token", "password"):
            if name in given:
                given[name] = given[name].get_secret_value()
        if "identities" in given:
            given["identities"] = tuple(each.get_secret_value() for each in given["identities"])
        return ImportRequest(SourceSpec(**given), self.route, self.gateway_url, self.start)


class ImportPreview(Answer):
    """The items that can be imported, as far as the source reports them; sizes are in bytes."""

    complete: bool = Field(description="Whether the source's list has been read completely.")
    items: int = Field(description="The number of items listed so far.")
    known_bytes: int = Field(
        description="The total size of the items whose size the source reports."
    )
    unknown_sizes: int = Field(
        description="The number of items whose size the source does not report."
    )
    already_here: int = Field(description="The number of items whose content you already store.")
    already_here_bytes: int = Field(
        description="The part of `known_bytes` that needs no additional storage."
    )
    quota_left: int | None = Field(
        description="The unused part of your storage quota; null if you have no quota."
    )
    fits: bool | None = Field(
        description="Whether the quota is sufficient; null if that is not yet known."
    )


class Import(Answer):
    """An import and its progress."""

    id: uuid.UUID = Field(description="The ID of the import. It never changes.")
    source: dict[str, str] = Field(
        description="The source, without credentials.", examples=[{"kind": "pinning_api"}]
    )
    route: Route = Field(description="How the content is fetched.")
    gateway_url: str | None = Field(description="The gateway that content may be fetched from.")
    status: ImportStatus = Field(
        description="`draft`: not started. `done`: every item was processed; `failed` counts"
        " those that"
        " could not be imported. `failed`: nothing was imported. Start the import again to"
        " retry the missing items."
    )
    error: str | None = Field(
        description="Why the import is waiting, has failed, or is incomplete."
    )
    total: int = Field(
        description="The number of items in the source's list (so far, while it is being read)."
    )
    done: int = Field(
        description="The number of items that are stored here, with every block verified."
    )
    skipped: int = Field(
        description="The part of `done` that was already stored before the import."
    )
    failed: int = Field(
        description="The number of items that could not be imported, or that are private and"
        " can't be decrypted here."
    )
    bytes: int = Field(description="Bytes imported, excluding content that was already stored.")
    bytes_under_way: int = Field(description="Bytes received so far for items in progress.")
    preview: ImportPreview = Field(description="The items that can be imported.")
    created_at: Moment = Field(description="When the import was created.")
    started_at: Moment | None = Field(description="When the import was last started.")
    finished_at: Moment | None = Field(description="When the import ended.")

    @classmethod
    def of(cls, row: ImportRow, state: ImportState) -> Self:
        """Return a row's schema."""
        needed = row.known_bytes - row.here_bytes
        complete = row.listed_at is not None
        fits = True if state.room is None else None
        if state.room is not None and row.status == "draft":
            if needed > state.room:
                fits = False
            elif complete and not row.unknown_sizes:
                fits = True
        return cls.model_validate(
            {
                "id": row.id,
                "source": row.source,
                "route": row.route,
                "gateway_url": row.gateway_url,
                "status": row.status,
                "error": row.error,
                "total": row.total,
                "done": row.done,
                "skipped": row.skipped,
                "failed": row.failed,
                "bytes": row.moved_bytes,
                "bytes_under_way": state.moving_bytes,
                "preview": ImportPreview(
                    complete=complete,
                    items=row.total,
                    known_bytes=row.known_bytes,
                    unknown_sizes=row.unknown_sizes,
                    already_here=row.here,
                    already_here_bytes=row.here_bytes,
                    quota_left=state.room,
                    fits=fits,
                ),
                "created_at": row.created_at,
                "started_at": row.started_at,
                "finished_at": row.finished_at,
            }
        )


class ImportList(Answer):
    """A page of imports, newest first."""

    count: int = Field(
        description="The total number of matching imports, with `before` and `after` applied."
    )
    items: list[Import] = Field(description="The newest matching imports.")


class ImportItem(Answer):
    """One item of an import."""

    id: uuid.UUID = Field(description="The ID of the item. It never changes.")
    position: int = Field(description="The item's position in the source's list, starting at 0.")
    cid: str | None = Field(
        description="The CID as CIDv1 in base32; null if the source's text is not a CID."
    )
    source_cid: str = Field(description="The CID as the source writes it.")
    name: str | None = Field(description="The item's name at the source.")
    meta: dict[str, Any] | None = Field(description="The item's metadata at the source.")
    source_created_at: Moment | None = Field(description="The item's date at the source.")
    size: int | None = Field(description="The size in bytes that the source reports.")
    status: ItemStatus = Field(
        description="The status of the item. `skipped`: the content was already stored; it was"
        " verified as well."
    )
    route: Literal["local", "ipfs", "gateway", "car"] | None = Field(
        description="How the content was fetched. `local`: the node already had it."
    )
    blocks: int | None = Field(
        description="The number of distinct blocks; while the item is in progress, those received"
        " so far."
    )
    bytes: int | None = Field(description="The total size of these blocks in bytes.")
    verified: bool = Field(
        description="Whether every block was read from the node and its hash was verified."
    )
    seconds: float | None = Field(description="How long the item took, in seconds.")
    reason: str | None = Field(
        description="Why the item could not be imported, or can't be decrypted here."
    )
    note: str | None = Field(description="What could not be stored or verified.")
    pin_id: uuid.UUID | None = Field(description="The pin that was created for the item.")
    file_id: uuid.UUID | None = Field(
        description="The file that was created for the item; also set for a private file that"
        " can't be decrypted here, whose status is `failed`."
    )
    created_at: Moment = Field(
        description="Increases with `position`; use it for `before` and `after`."
    )

    @classmethod
    def of(cls, row: ItemRow) -> Self:
        """Return a row's schema."""
        shown = {name: getattr(row, name) for name in cls.model_fields if name != "bytes"}
        return cls.model_validate({**shown, "bytes": row.dag_size})


class ImportItemList(Answer):
    """A page of items, in reverse order of the source's list."""

    count: int = Field(
        description="The total number of matching items, with `before` and `after` applied."
    )
    items: list[ImportItem] = Field(description="The last matching items.")
