"""Small files that are whole in memory before the node is given any of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

from on_api.core.ipfs.formats.cid import RAW, SHA2_256, Cid
from on_api.core.media_types import sniff
from on_api.core.services.files.private_files import Sealing
from on_api.core.services.uploads.intake import SNIFFED_BYTES
from on_api.core.services.uploads.stored_files import IncomingFile, UploadedFile


@dataclass(frozen=True, slots=True)
class WholeFile:
    """Small file in memory, and the `block` that the node is to store of it."""

    incoming: IncomingFile
    plaintext: bytes
    block: bytes
    sealing: Sealing | None
    sha256: bytes
    cid: Cid

    @classmethod
    def of(
        cls, incoming: IncomingFile, plaintext: bytes, block: bytes, sealing: Sealing | None
    ) -> Self:
        """Build a file with its hashes."""
        sha256 = hashlib.sha256(plaintext).digest()
        digest = sha256 if sealing is None else hashlib.sha256(block).digest()
        return cls(incoming, plaintext, block, sealing, sha256, Cid(RAW, SHA2_256, digest))

    def as_stored(self) -> UploadedFile:
        """Return the file as the node will store it: one raw block."""
        file = self.incoming
        return UploadedFile(
            incoming=file,
            cid=str(self.cid),
            stored_size=len(self.block),
            dag_size=len(self.block),
            size=len(self.plaintext),
            sha256=self.sha256,
            media_type=file.media_type or sniff(file.name, self.plaintext[:SNIFFED_BYTES]),
            sealing=self.sealing,
        )
