"""Files of another on-api that become files here: the source's description is compared with their
bytes, and private ones get the identity that opens them.

A private file that none of the user's identities opens is kept as an age file and reported as a
problem: the identity may be imported later, and then the file's row is updated.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from sqlalchemy import select
from sqlalchemy.orm import Session

from on_api.core.errors import ContentDamaged, NodeTruncated
from on_api.core.ipfs.formats.cid import Cid, normalise
from on_api.core.ipfs.formats.dag import DagError, file_size_of
from on_api.core.ipfs.port import DagStat
from on_api.core.models import File, UserUsage
from on_api.core.models.database import new_id
from on_api.core.models.file import FOR_OWNER, FOR_PASSPHRASE, FOR_RECIPIENTS, PRIVATE, PUBLIC
from on_api.core.services.accounts.audit import Actor
from on_api.core.services.container import Services
from on_api.core.services.content import contents, quota, recorder
from on_api.core.services.content.walking import read_block
from on_api.core.services.files.identities import identities_of
from on_api.core.services.files.sealed_headers import NotSealedError
from on_api.core.services.transfer.jobs import Item
from on_api.core.services.uploads.stored_files import MICROSECOND

CLOSED = (
    "The file is private at the source, and none of your identities decrypts it: its encrypted"
    " content is stored here, but can't be read. Import it again with your username and"
    " password at the source, or add the identity and start this import again. Files that are"
    " encrypted only to other people's keys can't be decrypted here."
)
NOT_COMPARED = (
    "The file is encrypted with a passphrase. Its blocks are verified; its content can't be"
    " compared without the passphrase."
)


class NotAuthenticError(Exception):
    """Error: a file's bytes don't match what its source says of them."""


@dataclass(frozen=True, slots=True)
class ImportedFileFacts:
    """Columns for a file's row that say whether it is public or private.

    `problem`: why it can't be read here. `note`: what could not be compared.
    """

    columns: Mapping[str, Any]
    problem: str | None = None
    note: str | None = None

    @property
    def is_opened(self) -> bool:
        """True if the file is private and one of the user's identities opens it."""
        return self.columns.get("identity_id") is not None


class ImportedFiles:
    """The files of one import."""

    def __init__(self, services: Services, user_id: uuid.UUID) -> None:
        self._services = services
        self._user_id = user_id

    def add_identity(self, text: str) -> None:
        """Add an identity of the source, which opens its private files, to the importing user."""
        with self._services.database.session_scope() as session:
            actor = Actor(self._user_id, client="import")
            self._services.identities.add(session, self._user_id, text, actor, active=False)

    async def inspect(self, item: Item, stat: DagStat) -> ImportedFileFacts:
        """Read a file's bytes as they will be served, and hash them if the server can decrypt them.

        Raises `NotAuthenticError`, `DamagedError`, or a `NodeError`.
        """
        listed = item.file or {}
        size = int(listed["size"])
        columns: Mapping[str, Any] = {"visibility": PUBLIC}
        if listed["visibility"] == PRIVATE:
            try:
                columns = await self._services.headers.columns_of(
                    self._user_id, item.cid, stat.size, size
                )
            except NotSealedError as error:
                raise NotAuthenticError(str(error)) from None
        await self._check_size(item, columns.get("sealed_size", size))
        sealed_for = columns.get("sealed_for", FOR_OWNER)
        if sealed_for == FOR_RECIPIENTS:
            return ImportedFileFacts(columns, problem=CLOSED)
        if sealed_for == FOR_PASSPHRASE:
            return ImportedFileFacts(columns, note=NOT_COMPARED)
        try:
            await self._hash(File(**self._row(item, columns)))
        except (ContentDamaged, NodeTruncated) as error:
            raise NotAuthenticError(
                f"The content can't be decrypted as a file: {error.details}"
            ) from None
        return ImportedFileFacts(columns)

    def open_others(self, session: Session, item: Item, facts: ImportedFileFacts) -> None:
        """Update every file of the user with these bytes for which no usable identity is recorded:
        record the one that opens it. The user's usage must be locked."""
        if not facts.is_opened:
            return
        mine = select(File).where(
            File.user_id == self._user_id,
            File.cid == normalise(item.cid),
            File.visibility == PRIVATE,
        )
        keys = {row.id for row in identities_of(session, self._user_id)}
        for file in session.scalars(mine.with_for_update()):
            is_described = file.sealed_for == FOR_OWNER and file.sealed_start is not None
            if not (is_described and file.identity_id in keys):
                for name, value in facts.columns.items():
                    setattr(file, name, value)
        session.flush()

    def add(
        self,
        session: Session,
        usage: UserUsage,
        item: Item,
        facts: ImportedFileFacts,
        stat: DagStat,
        secured: Mapping[str, int],
    ) -> uuid.UUID:
        """Record a file, and return its id. `usage` must be locked.

        Raises `contents.NotSecuredError`, and `InsufficientFunds` over the quota.
        """
        charged = usage.storage_bytes
        row = self._row(item, facts.columns)
        row["created_at"] = contents.next_moment(usage, step=MICROSECOND)
        recorder.add_reference(session, usage, row["cid"], stat.size, secured)
        quota.require_kept(usage, charged)
        recorder.record_files(session, {usage.user_id: usage}, [row])
        file_id: uuid.UUID = row["id"]
        return file_id

    def _row(self, item: Item, columns: Mapping[str, Any]) -> dict[str, Any]:
        listed = item.file or {}
        return {
            "id": new_id(),
            "user_id": self._user_id,
            "cid": normalise(item.cid),
            "name": listed["name"],
            "size": int(listed["size"]),
            "media_type": listed["media_type"],
            "sha256": bytes.fromhex(listed["sha256"]),
            "meta": listed["meta"],
            "source_created_at": item.source_created_at,
            **columns,
        }

    async def _check_size(self, item: Item, size: int) -> None:
        """Compare the size that the root tells: any bytes beyond it would go unnoticed. Raises
        `NotAuthenticError`."""
        cid = Cid.from_text(item.cid)
        block = cid.inline
        if block is None:
            block = await read_block(self._services.node, cid)
        try:
            declared = file_size_of(cid.codec, block)
        except DagError:
            declared = None
        if declared is None:
            raise NotAuthenticError("The content is not a file on IPFS.")
        if declared != size:
            raise NotAuthenticError(
                f"The file has {declared} bytes, but the source reports {size}."
            )

    async def _hash(self, file: File) -> None:
        reading = await self._services.reader.read(file)
        digest = hashlib.sha256()
        async with reading.open(0, reading.size) as chunks:
            async for chunk in chunks:
                await to_thread.run_sync(digest.update, chunk)
        if digest.digest() != file.sha256:
            raise NotAuthenticError("The file does not match the hash that the source reports.")
