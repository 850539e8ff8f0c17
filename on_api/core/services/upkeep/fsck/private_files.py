"""Private files whose rows have lost what is needed to open them: header, identity, size of the age
file. All but the identity can be read from the node."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from anyio import to_thread
from sqlalchemy import exists, or_, select

from on_api.core.errors import NodeError, SecretUnavailable
from on_api.core.models import Content, Database, File, Identity
from on_api.core.models.file import FOR_OWNER, FOR_PASSPHRASE, FOR_RECIPIENTS, PRIVATE
from on_api.core.services.files.sealed_headers import NotSealedError, SealedHeaders
from on_api.core.services.upkeep.fsck.findings import Finding, FindingKind, FsckReport


async def check_private_files(
    database: Database, headers: SealedHeaders, report: FsckReport, *, repair: bool
) -> None:
    """Check that every private file has a header, and an identity of its owner where that is to
    open it."""
    for file_id in await to_thread.run_sync(_closed, database):
        file, dag_size = await to_thread.run_sync(_look, database, file_id)
        if file is None:
            continue
        details = _what_is_missing(file)
        mended = False
        if repair:
            try:
                columns = await headers.columns_of(file.user_id, file.cid, dag_size, file.size)
            except (NotSealedError, NodeError, SecretUnavailable) as error:
                details += f"; {error}"
            else:
                # Without the identity the file would count as one for other recipients only.
                if columns["sealed_for"] == FOR_RECIPIENTS and file.sealed_for != FOR_RECIPIENTS:
                    details += "; none of its owner's identities decrypts it"
                else:
                    mended = await to_thread.run_sync(_write, database, file_id, file.cid, columns)
        report.add(Finding(FindingKind.CLOSED_FILE, str(file_id), details, mended))


def _closed(database: Database) -> Sequence[uuid.UUID]:
    theirs = exists().where(Identity.id == File.identity_id, Identity.user_id == File.user_id)
    wrong = or_(
        File.sealed_for.is_(None),
        File.sealed_for.not_in((FOR_OWNER, FOR_PASSPHRASE, FOR_RECIPIENTS)),
        File.sealed_start.is_(None),
        File.sealed_size.is_(None),
        (File.sealed_for == FOR_OWNER) & ~theirs,
    )
    with database.session_scope(write=False) as session:
        return session.scalars(select(File.id).where(File.visibility == PRIVATE, wrong)).all()


def _look(database: Database, file_id: uuid.UUID) -> tuple[File | None, int]:
    with database.session_scope(write=False) as session:
        file = session.get(File, file_id)
        content = None if file is None else session.get(Content, file.cid)
        return file, 0 if content is None else content.dag_size


def _write(database: Database, file_id: uuid.UUID, cid: str, columns: Mapping[str, Any]) -> bool:
    with database.session_scope() as session:
        file = session.get(File, file_id, with_for_update=True)
        if file is None or file.cid != cid or file.visibility != PRIVATE:
            return False
        for name, value in columns.items():
            setattr(file, name, value)
        return True


def _what_is_missing(file: File) -> str:
    if file.sealed_for is None or file.sealed_start is None or file.sealed_size is None:
        return "its row does not say how it is encrypted, so it can't be decrypted here"
    return "the identity that decrypts it does not belong to its owner"
