"""The port to where content may come from: what every source says of what it has, page by page, and
what a person has to tell so that it can be asked.

Holds the protocol and its plain data. Knows neither the database nor who imports; secrets pass
through it and are shown by no `repr`.
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

MAX_NAME = 255
"""Characters of a name; the rest is cut off."""
MAX_META = 1000
MAX_META_BYTES = 16 * 1024
MAX_TOKEN = 8192
MAX_RESUME_BYTES = 640 * 1024


@dataclass(frozen=True, slots=True)
class SourceFile:
    """What another on-api says of a file, so that it can stay one."""

    id: str
    name: str
    media_type: str
    size: int
    """Bytes as they were uploaded, not those of the DAG."""
    sha256: bytes
    """Of those bytes: 32 of its own."""
    visibility: str
    """`public` or `private`; a private one's DAG is an age file."""
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One thing that the source has, as it says: nothing of it is verified but its form."""

    cid: str
    """As the source spells it; any text when there is a `problem`."""
    name: str | None
    meta: Mapping[str, str]
    created_at: datetime | None
    """The source's own date, with its time zone."""
    size: int | None
    """Bytes, where the source tells."""
    origins: tuple[str, ...] = ()
    """Multiaddrs that may be dialled for it, unchecked."""
    problem: str | None = None
    """Why it can't be moved, in a sentence; None: it may be tried."""
    note: str | None = None
    """What of it can't be kept, in a sentence; None: all of it can."""
    file: SourceFile | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some items, and from where to go on."""

    items: Sequence[SourceItem]
    resume: str
    """What `pages(after=…)` takes to go on behind this page; at most `MAX_RESUME_BYTES`, no
    secret."""


class Source(Protocol):
    """One place to import from. Bound to the event loop of its first call.

    Every method but `close` raises a `SourceError`, in bounded time for each page.
    """

    kind: str

    def pages(self, after: str | None = None) -> AsyncIterator[Page]:
        """Everything that the source has, from the beginning or behind a page seen before.

        Ends only when all was listed: a source that stops half-way is an error, never a shorter
        list. An item may come twice when the source changes meanwhile, or after a crash.
        """
        ...

    async def delegates(self) -> Sequence[str]:
        """Multiaddrs at which the source's content is served over IPFS, unchecked; may be empty."""
        return ()

    async def identities(self) -> Sequence[str]:
        """The secrets (`AGE-SECRET-KEY-1…`) that open its private files; empty for most."""
        return ()

    async def close(self) -> None:
        """Free every connection."""
        return


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """What a person tells of a source. Which fields a kind takes is said in `FIELDS`."""

    kind: str
    endpoint: str | None = None
    """The service's URL: of a Pinning Service API what `/pins` follows, of a Kubo its RPC, of an
    on-api its origin."""
    token: str | None = field(default=None, repr=False)
    """The bearer token (JWT, key); of a Kubo `bearer:TOKEN` or `basic:USER:PASSWORD`."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    """Of the account at the other on-api, when private files are to come along."""
    identities: tuple[str, ...] = field(default=(), repr=False)
    """Or else the identities that open them, exported before."""
    path: str | None = None
    """A file on this machine: from the command line only."""
    text: str | None = field(default=None, repr=False)
    """The list itself."""
    roots: tuple[str, ...] = ()
    """Of a CAR that was taken in already."""

    def __post_init__(self) -> None:
        """Check it. Raises `BadRequest` for an unknown kind, or the wrong fields for it."""
        takes = FIELDS.get(self.kind)
        if takes is None:
            raise BadRequest(f"source.kind: one of {', '.join(KINDS)}.")
        for each in fields(self):
            if each.name != "kind" and each.name not in takes and getattr(self, each.name):
                raise BadRequest(f"source.{each.name}: a {self.kind} source takes no such thing.")
        for name, needed in takes.items():
            if needed and not getattr(self, name):
                raise BadRequest(f"source.{name}: a {self.kind} source needs it.")
        if self.token and not (self.token.isascii() and self.token.isprintable()):
            raise BadRequest("source.token: it has letters that no token has.")
        if len(self.token or "") > MAX_TOKEN:
            raise BadRequest("source.token: it is too long.")

    def to_json(self) -> str:
        """For keeping, sealed: it holds the secrets."""
        return json.dumps({name: value for name, value in asdict(self).items() if value})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
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
"""By kind the fields that a `SourceSpec` takes, and whether they are needed."""
