"""A file before it has a row: as received, and as stored on the node."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from on_api.core.models.database import new_id
from on_api.core.services.files.files import FileFacts
from on_api.core.services.files.private_files import Audience, Sealing, columns_of
from on_api.core.streams.blocks import Bytes

MICROSECOND = timedelta(microseconds=1)
"""Resolution of a file's `created_at`."""


@dataclass
class IncomingFile:
    """One file as received. `media_type=None`: to be detected. A private one has an `audience`.

    `name` and `meta` may still change until the last byte of the whole upload is read.
    """

    name: str
    media_type: str | None
    meta: dict[str, Any]
    body: AsyncIterator[Bytes]
    audience: Audience | None = None


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """File whose bytes are on the node, or about to be. `size` and `sha256` are of the bytes
    received, `stored_size` and `dag_size` of those on the node."""

    incoming: IncomingFile
    cid: str
    stored_size: int
    dag_size: int
    size: int
    sha256: bytes
    media_type: str
    sealing: Sealing | None

    def columns(self, user_id: uuid.UUID, created_at: datetime) -> dict[str, Any]:
        """Return its new row: all columns that have no default."""
        return {
            "id": new_id(),
            "user_id": user_id,
            "cid": self.cid,
            "name": self.incoming.name,
            "size": self.size,
            "media_type": self.media_type,
            "sha256": self.sha256,
            "meta": self.incoming.meta,
            "created_at": created_at,
            **columns_of(self.sealing, self.stored_size),
        }


def facts_in(columns: dict[str, Any]) -> FileFacts:
    """Return the properties shown of a new file from its row's columns; missing ones are null."""
    return FileFacts._make(map(columns.get, FileFacts._fields))
