"""Headers of private files' age files, read from the node, and the user's identity that opens
them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from anyio import to_thread

from on_api.core.crypto.age import (
    MAX_START_BYTES,
    PAYLOAD_NONCE_BYTES,
    AgeError,
    sealed_size,
    start_size,
    unlock,
)
from on_api.core.errors import NodeTruncated, SecretUnavailable
from on_api.core.ipfs.formats.cid import RAW, Cid
from on_api.core.ipfs.port import IpfsNode
from on_api.core.models import Database
from on_api.core.models.file import FOR_OWNER, FOR_PASSPHRASE, FOR_RECIPIENTS, PRIVATE
from on_api.core.services.files.identities import IdentityService, identities_of

_BY_PASSPHRASE = b"age-encryption.org/v1\n-> scrypt "


class NotSealedError(Exception):
    """Error: the content on the node is no age file of the expected size."""


class SealedHeaders:
    """Reader of the beginnings of age files, which finds the identity that opens them."""

    def __init__(self, database: Database, node: IpfsNode, identities: IdentityService) -> None:
        self._database = database
        self._node = node
        self._identities = identities

    async def columns_of(
        self, user_id: uuid.UUID, cid: str, dag_size: int, plaintext_size: int
    ) -> Mapping[str, Any]:
        """Return the columns on encryption for the row of a user's private file of `plaintext_size`
        bytes.

        `dag_size` in bytes. Raises `NotSealedError`, `SecretUnavailable`, or a `NodeError`.
        """
        # A file of several blocks is longer than any header.
        one_block = Cid.from_text(cid).codec == RAW
        length = min(MAX_START_BYTES, dag_size) if one_block else MAX_START_BYTES
        try:
            async with self._node.read(cid, offset=0, length=length) as chunks:
                start = b"".join([chunk async for chunk in chunks])
            start = start[: start_size(start)]
            whole = sealed_size(plaintext_size, len(start) - PAYLOAD_NONCE_BYTES)
            async with self._node.read(cid, offset=whole - 1, length=1) as chunks:
                _ = [chunk async for chunk in chunks]
        except (AgeError, NodeTruncated):
            raise NotSealedError(
                "The content is not an encrypted file of the expected size."
            ) from None
        identity_id = await to_thread.run_sync(self._opener_of, user_id, start)
        sealed_for = FOR_OWNER
        if identity_id is None:
            sealed_for = FOR_PASSPHRASE if start.startswith(_BY_PASSPHRASE) else FOR_RECIPIENTS
        return {
            "visibility": PRIVATE,
            "sealed_for": sealed_for,
            "identity_id": identity_id,
            "sealed_size": whole,
            "sealed_start": start,
        }

    def _opener_of(self, user_id: uuid.UUID, start: bytes) -> uuid.UUID | None:
        """Return the user's identity that opens a file; None if none does. Raises
        `SecretUnavailable` when none does but one could not be unsealed."""
        with self._database.session_scope(write=False) as session:
            known = identities_of(session, user_id)
        sealed: SecretUnavailable | None = None
        for row in known:
            try:
                unlock(start, [self._identities.open(row)])
            except AgeError:
                continue
            except SecretUnavailable as error:
                sealed = error
                continue
            return row.id
        if sealed is not None:
            raise sealed
        return None
