"""The gateway's deny list: CIDs that it must not serve, whoever holds them and wherever they are
listed.

It applies to `/ipfs` alone: file content and shares are up to their owners.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from on_api.core.errors import BadRequest, NotFound
from on_api.core.ipfs.formats.cid import RAW, Cid
from on_api.core.models import DeniedCid
from on_api.core.models.denied import REASON_LENGTH
from on_api.core.models.invalidation import contents_changed
from on_api.core.services.accounts import audit
from on_api.core.services.accounts.audit import Actor

STATUSES = (410, 451)


def deny(session: Session, cid: str, *, status: int, reason: str | None, actor: Actor) -> DeniedCid:
    """Put a CID on the list, or change its entry. Effective at once in this process, within a
    second in others. Raises `BadRequest` for a malformed CID, or another status than `STATUSES`."""
    if status not in STATUSES:
        raise BadRequest("status: must be 410 or 451.")
    if reason is not None and len(reason) > REASON_LENGTH:
        raise BadRequest(f"reason: must have at most {REASON_LENGTH} characters.")
    parsed = Cid.from_text(cid)
    entry = session.get(DeniedCid, hash_cid(parsed), with_for_update=True)
    if entry is None:
        entry = DeniedCid(hash_cid=hash_cid(parsed), cid=str(parsed), status=status, reason=reason)
        session.add(entry)
    else:
        entry.status, entry.reason = status, reason
    audit.record(session, actor, "gateway.deny", "cid", cid=str(parsed), status=status)
    contents_changed(session)
    session.flush()
    return entry


def undeny(session: Session, cid: str, actor: Actor) -> None:
    """Take a CID off the list. Raises `NotFound` if it isn't on it."""
    parsed = Cid.from_text(cid)
    entry = session.get(DeniedCid, hash_cid(parsed), with_for_update=True)
    if entry is None:
        raise NotFound("This CID is not on the deny list.")
    session.delete(entry)
    audit.record(session, actor, "gateway.allow", "cid", cid=str(parsed))
    contents_changed(session)
    session.flush()


def denied(session: Session) -> Sequence[DeniedCid]:
    """Return the whole list, newest first."""
    return session.scalars(
        select(DeniedCid).order_by(DeniedCid.created_at.desc(), DeniedCid.hash_cid)
    ).all()


def hash_cid(cid: Cid) -> str:
    """Return the common form of all CIDs of one hash: the CID with codec `raw`."""
    return str(Cid(RAW, cid.hash_code, cid.digest))
