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
    """Any service that speaks the IPFS Pinning Service API."""

    kind: Literal["pinning_api"] = Field(description="Which kind of source.")
    endpoint: Url = Field(
        description="Its URL, up to what `/pins` follows.", examples=["https://api.example/psa"]
    )
    token: Secret = Field(description="Its access token.")


class PinataSource(Request):
    """Pinata, by its own API."""

    kind: Literal["pinata"] = Field(description="Which kind of source.")
    token: Secret = Field(description="A Pinata JWT that may list files.")
    endpoint: Url | None = Field(None, description="Another URL than Pinata's own.")


class KuboSource(Request):
    """The recursive pins of another Kubo (administrators only)."""

    kind: Literal["kubo"] = Field(description="Which kind of source.")
    endpoint: Url = Field(description="Its RPC.", examples=["https://kubo.example:5001"])
    token: Secret | None = Field(None, description="`bearer:TOKEN` or `basic:USER:PASSWORD`.")


class CarSource(Request):
    """A CAR, sent afterwards to `PUT …/car`."""

    kind: Literal["car"] = Field(description="Which kind of source.")


class CidsSource(Request):
    """A list of CIDs: one a line, or CSV with their names."""

    kind: Literal["cids"] = Field(description="Which kind of source.")
    text: Annotated[str, AfterValidator(storable_text)] = Field(
        min_length=1,
        max_length=MOST_TEXT_LENGTH,
        description="The list.",
        examples=["bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e notes.txt"],
    )


class OnApiSource(Request):
    """Another on-api: its files stay files."""

    kind: Literal["on_api"] = Field(description="Which kind of source.")
    endpoint: Url = Field(description="Its URL.", examples=["https://old.example"])
    token: Secret = Field(description="A key with `files:read` and `pins:read`.")
    username: Text | None = Field(
        None, max_length=64, description="With `password`: private files come with their identity."
    )
    password: Secret | None = Field(None, description="Of that account.")
    identities: Annotated[list[Secret], Field(max_length=MOST_IDENTITIES)] | None = Field(
        None, description="Or the identities themselves: `AGE-SECRET-KEY-1…`."
    )


ImportSource = Annotated[
    PinningApiSource | PinataSource | KuboSource | CarSource | CidsSource | OnApiSource,
    Field(discriminator="kind"),
]


class ImportCreate(Request):
    """A new import."""

    source: ImportSource = Field(description="Where from.")
    route: Route = Field(
        "auto",
        description="How the bytes come. `ipfs`: from the source's IPFS nodes. `gateway`: from a "
        "trustless gateway. `auto`: what is here already, else by IPFS, else from the gateway.",
    )
    gateway_url: Url | None = Field(
        None,
        description="A trustless gateway, which need not be trusted: every block is checked.",
        examples=["https://gateway.example"],
    )
    start: bool = Field(False, description="Begin at once; else look at the preview first.")

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
    """Items that can be moved, as far as the source tells; sizes in bytes."""

    complete: bool = Field(description="Whether the source's list was read to its end.")
    items: int = Field(description="How many it lists so far.")
    known_bytes: int = Field(description="Of those whose size it tells.")
    unknown_sizes: int = Field(description="How many of them it tells no size of.")
    already_here: int = Field(description="Items whose content you hold already.")
    already_here_bytes: int = Field(description="Of `known_bytes`, what needs no room any more.")
    quota_left: int | None = Field(description="What your quota leaves now; null: no limit.")
    fits: bool | None = Field(description="Whether that is enough; null: it can't be told yet.")


class Import(Answer):
    """An import and how far it is."""

    id: uuid.UUID = Field(description="Never changes.")
    source: dict[str, str] = Field(
        description="Where from, without credentials.", examples=[{"kind": "pinning_api"}]
    )
    route: Route = Field(description="How the bytes come.")
    gateway_url: str | None = Field(description="The gateway that may be asked.")
    status: ImportStatus = Field(
        description="`draft`: not started. `done`: every item was gone through; those that could "
        "not be moved are counted by `failed`. `failed`: nothing was moved. Start it again to try "
        "once more what is missing."
    )
    error: str | None = Field(description="Why it waits, has failed, or is not complete.")
    total: int = Field(description="Items that the source lists (so far, until it was read).")
    done: int = Field(description="Items that are here, every block verified.")
    skipped: int = Field(description="Of `done`: those that were here before.")
    failed: int = Field(
        description="Items that could not be moved, or that are private and nobody here can open."
    )
    bytes: int = Field(description="What was moved, without what was here before.")
    bytes_under_way: int = Field(description="What has come so far of items under way.")
    preview: ImportPreview = Field(description="What there is to be moved.")
    created_at: Moment = Field(description="When it was asked for.")
    started_at: Moment | None = Field(description="When it was started (last).")
    finished_at: Moment | None = Field(description="When it ended.")

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

    count: int = Field(description="How many match, `before` and `after` included.")
    items: list[Import] = Field(description="The newest of them.")


class ImportItem(Answer):
    """One thing that an import moves."""

    id: uuid.UUID = Field(description="Never changes.")
    position: int = Field(description="Its place in the source's list, from 0.")
    cid: str | None = Field(description="CIDv1, base32; null: the source's text is no CID.")
    source_cid: str = Field(description="As the source spells it.")
    name: str | None = Field(description="Its name at the source.")
    meta: dict[str, Any] | None = Field(description="Its metadata at the source.")
    source_created_at: Moment | None = Field(description="Its date at the source.")
    size: int | None = Field(description="Bytes, as the source tells.")
    status: ItemStatus = Field(description="`skipped`: it was here before, and is verified too.")
    route: Literal["local", "ipfs", "gateway", "car"] | None = Field(
        description="How its bytes came. `local`: they lay here already."
    )
    blocks: int | None = Field(description="Its different blocks; while it moves, those so far.")
    bytes: int | None = Field(description="Of these blocks.")
    verified: bool = Field(description="Every block was read from our node and hashed.")
    seconds: float | None = Field(description="How long it took.")
    reason: str | None = Field(description="Why it could not be moved, or can't be opened here.")
    note: str | None = Field(description="What of it could not be kept or verified.")
    pin_id: uuid.UUID | None = Field(description="The pin that it became.")
    file_id: uuid.UUID | None = Field(
        description="The file that it became; also of a private one that nobody here can open, "
        "which is `failed`."
    )
    created_at: Moment = Field(description="Rises with `position`: for `before` and `after`.")

    @classmethod
    def of(cls, row: ItemRow) -> Self:
        """Return a row's schema."""
        shown = {name: getattr(row, name) for name in cls.model_fields if name != "bytes"}
        return cls.model_validate({**shown, "bytes": row.dag_size})


class ImportItemList(Answer):
    """A page of items, the last of the source's list first."""

    count: int = Field(description="How many match, `before` and `after` included.")
    items: list[ImportItem] = Field(description="The last of them.")
