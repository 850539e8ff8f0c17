"""Files of another on-api that stay files here: what their source says of them is held against
their bytes, and private ones get the identity that opens them.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from sqlalchemy.orm import Session

from on_api.core.crypto.age import (
    MAX_START_BYTES,
    PAYLOAD_NONCE_BYTES,
    AgeError,
    sealed_size,
    start_size,
    unlock,
)
from on_api.core.errors import ContentDamaged, InsufficientFunds, NodeTruncated
from on_api.core.ipfs.cid import RAW, Cid, normalise
from on_api.core.ipfs.client import DagStat
from on_api.core.models import File, UserUsage
from on_api.core.models.database import new_id
from on_api.core.models.file import FOR_OWNER, FOR_PASSPHRASE, FOR_RECIPIENTS, PRIVATE, PUBLIC
from on_api.core.services import contents, events
from on_api.core.services.audit import Actor
from on_api.core.services.container import Services
from on_api.core.services.identities import identities_of
from on_api.core.services.import_jobs import Item
from on_api.core.services.stored_files import MICROSECOND

_SCRYPT_STANZA = b"\n-> scrypt "


class NotAuthenticError(Exception):
    """A file's bytes are not what its source says of them."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the row of a file is to say of its being public or private."""

    columns: Mapping[str, Any]


class ImportedFiles:
    """The files of one import."""

    def __init__(self, services: Services, user_id: uuid.UUID) -> None:
        self._services = services
        self._user_id = user_id

    def add_identity(self, text: str) -> None:
        """What opens private files at the source is the importing user's too, from now on."""
        with self._services.database.session_scope() as session:
            actor = Actor(self._user_id, client="import")
            self._services.identities.add(session, self._user_id, text, actor, active=False)

    async def inspect(self, item: Item, stat: DagStat) -> FileFacts:
        """Read a file's bytes as they will be served, and hash them where the server can.

        Raises `NotAuthenticError`, or a `NodeError`.
        """
        said = item.file or {}
        columns: Mapping[str, Any] = {"visibility": PUBLIC}
        if said["visibility"] == PRIVATE:
            columns = await self._look_at_private(item, stat, int(said["size"]))
        file = self._file(item, columns)
        try:
            if columns.get("sealed_for", FOR_OWNER) == FOR_OWNER:
                await self._hash(file)
        except (ContentDamaged, NodeTruncated) as error:
            raise NotAuthenticError(f"Its bytes are not those of a file: {error.details}") from None
        return FileFacts(columns)

    def add(
        self,
        session: Session,
        usage: UserUsage,
        item: Item,
        facts: FileFacts,
        stat: DagStat,
        secured: Mapping[str, int],
    ) -> File:
        """Record a file; `usage` is locked.

        Raises `contents.NotSecuredError`, `InsufficientFunds` over the quota.
        """
        charged = usage.storage_bytes
        file = self._file(item, facts.columns)
        file.created_at = contents.next_moment(usage, step=MICROSECOND)
        contents.add_reference(session, usage, file.cid, stat.size, secured)
        room = contents.room_of(session, usage)
        if room is not None and room < 0 and usage.storage_bytes > charged:
            raise InsufficientFunds
        usage.file_count += 1
        session.add(file)
        events.record(session, file.user_id, "file.created", file.id, cid=file.cid)
        session.flush()
        return file

    def _file(self, item: Item, columns: Mapping[str, Any]) -> File:
        said = item.file or {}
        return File(
            id=new_id(),
            user_id=self._user_id,
            cid=normalise(item.cid),
            name=said["name"],
            size=int(said["size"]),
            media_type=said["media_type"],
            sha256=bytes.fromhex(said["sha256"]),
            meta=said["meta"],
            source_created_at=item.source_created_at,
            **columns,
        )

    async def _hash(self, file: File) -> None:
        reading = await self._services.reader.read(file)
        digest = hashlib.sha256()
        async with reading.open(0, reading.size) as chunks:
            async for chunk in chunks:
                await to_thread.run_sync(digest.update, chunk)
        if digest.digest() != file.sha256:
            raise NotAuthenticError("Its bytes don't have the hash that the source says.")

    async def _look_at_private(
        self, item: Item, stat: DagStat, plain_size: int
    ) -> Mapping[str, Any]:
        """Whose key opens it. Raises `NotAuthenticError` for what is no age file of this size."""
        node = self._services.node
        # A file of several blocks is longer than any header.
        one_block = Cid.from_text(item.cid).codec == RAW
        length = min(MAX_START_BYTES, stat.size) if one_block else MAX_START_BYTES
        try:
            async with node.read(item.cid, offset=0, length=length) as chunks:
                start = b"".join([chunk async for chunk in chunks])
            start = start[: start_size(start)]
            whole = sealed_size(plain_size, len(start) - PAYLOAD_NONCE_BYTES)
            async with node.read(item.cid, offset=whole - 1, length=1) as chunks:
                _ = [chunk async for chunk in chunks]
        except (AgeError, NodeTruncated):
            raise NotAuthenticError("It is no encrypted file of the size that is said.") from None
        identity_id = await to_thread.run_sync(self._opener_of, start)
        sealed_for = FOR_OWNER
        if identity_id is None:
            sealed_for = FOR_PASSPHRASE if _SCRYPT_STANZA in start else FOR_RECIPIENTS
        return {
            "visibility": PRIVATE,
            "sealed_for": sealed_for,
            "identity_id": identity_id,
            "sealed_size": whole,
            "sealed_start": start,
        }

    def _opener_of(self, start: bytes) -> uuid.UUID | None:
        """The user's identity that opens a file; None: none of them does."""
        identities = self._services.identities
        with self._services.database.session_scope(write=False) as session:
            known = [
                (row.id, identities.open(row)) for row in identities_of(session, self._user_id)
            ]
        for identity_id, identity in known:
            try:
                unlock(start, [identity])
            except AgeError:
                continue
            return identity_id
        return None
