"""The port to sources of content: how a source lists what it has, page by page, and what the user
has to specify to reach it.

Holds the protocol and its plain data. Knows neither the database nor the importing user; secrets
pass through it and are shown by no `repr`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, Protocol, Self

from on_api.core.errors import BadRequest

PINNING_API = "pinning_api"
PINATA = "pinata"
KUBO = "kubo"
CAR = "car"
CIDS = "cids"
ON_API = "on_api"
KINDS = (PINNING_API, PINATA, KUBO, CAR, CIDS, ON_API)

MAX_NAME_LENGTH = 255
"""Characters of a name at most; the rest is cut off."""
MAX_META_ENTRIES = 1000
MAX_META_BYTES = 16 * 1024
MAX_TOKEN_LENGTH = 8192
MAX_RESUME_BYTES = 640 * 1024


@dataclass(frozen=True, slots=True)
class SourceFile:
    """Metadata of a file at another on-api, from which it can become a file here."""

    id: str
    name: str
    media_type: str
    size: int
    """Bytes of the upload, not those of the DAG."""
    sha256: bytes
    """SHA-256 of the uploaded bytes, 32 bytes."""
    visibility: str
    """Visibility, `public` or `private`; a private file's DAG is an age file."""
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One item as the source describes it: nothing is verified but its form."""

    cid: str
    """The CID as the source spells it; any text when there is a `problem`."""
    name: str | None
    meta: Mapping[str, str]
    created_at: datetime | None
    """Date of its creation by the source, with a time zone."""
    size: int | None
    """Size in bytes, if the source gives it."""
    origins: tuple[str, ...] = ()
    """Multiaddrs that may have it, unchecked."""
    problem: str | None = None
    """Reason why it can't be moved, in a sentence; None: it may be tried."""
    note: str | None = None
    """Part of it that can't be kept, in a sentence; None: all of it can."""
    file: SourceFile | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some items, and the cursor after them."""

    items: Sequence[SourceItem]
    resume: str
    """Cursor that `pages(after=…)` takes to continue after this page; at most `MAX_RESUME_BYTES`,
    not secret."""


class Source(Protocol):
    """One place to import from. Bound to the event loop of its first call.

    Every method but `close` raises a `SourceError`, in bounded time for each page.
    """

    kind: str

    def pages(self, after: str | None = None) -> AsyncIterator[Page]:
        """Yield everything that the source has, from the beginning or after an earlier page.

        Ends only when everything was listed: a source that stops half-way is an error, never a
        shorter list. An item may come twice when the source changes meanwhile, or after a crash.
        """
        ...

    async def delegates(self) -> Sequence[str]:
        """Return multiaddrs at which the source's content is served over IPFS, unchecked; may be
        empty."""
        return ()

    async def identities(self) -> Sequence[str]:
        """Return the secrets (`AGE-SECRET-KEY-1…`) that open its private files; empty for most
        sources."""
        return ()

    async def close(self) -> None:
        """Close every connection."""
        return


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A source as the user specifies it. `FIELDS` says which fields each kind takes."""

    kind: str
    endpoint: str | None = None
    """URL of the service: of a Pinning Service API the part before `/pins`, of a Kubo its RPC, of
    an on-api its origin."""
    token: str | None = field(default=None, repr=False)
    """Bearer token (JWT, key); of a Kubo `bearer:TOKEN` or `basic:USER:PASSWORD`."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    """Password of the account at the other on-api, if private files are to be imported as well."""
    identities: tuple[str, ...] = field(default=(), repr=False)
    """Identities that open them, exported before; instead of a password."""
    path: str | None = None
    """Path of a file on this machine; from the command line only."""
    text: str | None = field(default=None, repr=False)
    """Text of the list."""
    roots: tuple[str, ...] = ()
    """Roots of a CAR that was stored already."""

    def __post_init__(self) -> None:
        """Check the fields. Raises `BadRequest` for an unknown kind, or the wrong fields for it."""
        takes = FIELDS.get(self.kind)
        if takes is None:
            raise BadRequest(f"source.kind: must be one of {', '.join(KINDS)}.")
        for each in fields(self):
            if each.name != "kind" and each.name not in takes and getattr(self, each.name):
                raise BadRequest(
                    f"source.{each.name}: not allowed for a source of kind {self.kind}."
                )
        for name, needed in takes.items():
            if needed and not getattr(self, name):
                raise BadRequest(f"source.{name}: required for a source of kind {self.kind}.")
        if self.token and not (self.token.isascii() and self.token.isprintable()):
            raise BadRequest("source.token: contains characters that are not allowed in a token.")
        if len(self.token or "") > MAX_TOKEN_LENGTH:
            raise BadRequest("source.token: too long.")

    def to_json(self) -> str:
        """Return it as JSON for storage; it contains the secrets and has to be sealed."""
        return json.dumps({name: value for name, value in asdict(self).items() if value})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        for name in ("identities", "roots"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)


FIELDS: Mapping[str, Mapping[str, bool]] = {
    PINNING_API: {"endpoint": True, "token": True},
    PINATA: {"endpoint": False, "token": True},
    KUBO: {"endpoint": True, "token": False},
    CAR: {"path": False, "roots": False},
    CIDS: {"path": False, "text": False},
    ON_API: {
        "endpoint": True,
        "token": True,
        "username": False,
        "password": False,
        "identities": False,
    },
}
"""Fields that a `SourceSpec` takes, by kind, and whether they are required."""
