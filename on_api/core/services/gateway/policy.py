"""What the gateway may serve, and who is charged for it. How it is answered is in
`public/gateway/app.py`.

Verdicts are remembered in memory for as long as nothing changes that they rest on. A refusal is
not: what was uploaded a moment ago must be there.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Select, exists, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from on_api.core.ipfs.formats.cid import DAG_PB, RAW, Cid
from on_api.core.ipfs.formats.dag import DagError, links_of
from on_api.core.models import Database, DeniedCid, File, Pin, User
from on_api.core.models.file import PRIVATE, PUBLIC
from on_api.core.models.invalidation import Invalidations
from on_api.core.models.pin import PINNED_STATUS
from on_api.core.services.content.private_blocks import is_private
from on_api.core.services.gateway.deny_list import hash_cid
from on_api.core.services.traffic.metering import Charge, Kind
from on_api.core.setting_groups import GatewaySettings

REMEMBERED = 100_000
REMEMBERED_SECONDS = 60.0
"""A verdict is looked at anew so often even if no news came: new holders announce nothing."""
OLDEST_REFERENCES = 1000
"""So many references of a kind are looked at, and not more: one content may have any number."""
MOST_HOLDERS = 16
"""So many are tried whose budget may be used up."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one root, with every path below it."""

    denied: int | None
    """The status to answer; None: it isn't on the deny list."""
    served: bool
    is_listed: bool
    """Whether anybody refers to it in public."""
    charges: Sequence[Charge]
    """Who may be charged, in this order: the first whose budget is not used up."""
    until: float
    """On the clock of `time.monotonic`."""


class GatewayPolicy:
    """Decides by root. Thread-safe; `recall` costs no more than a look into memory."""

    def __init__(
        self, database: Database, invalidations: Invalidations, settings: GatewaySettings
    ) -> None:
        self._database = database
        self._invalidations = invalidations
        self._any_root = settings.policy == "local"
        self._lock = threading.Lock()
        self._known: dict[str, Verdict] = {}
        self._generation = 0
        invalidations.subscribe_to_contents(self._forget)

    def recall(self, root: str) -> Verdict | None:
        """The verdict on a root (normalised) where memory can tell."""
        verdict = self._known.get(root)
        if verdict is None or verdict.until < time.monotonic() or not self._invalidations.trusted:
            return None
        return verdict

    def decide(self, root: Cid) -> Verdict:
        """The verdict on a root, from the database. Raises `DatabaseUnavailable`."""
        generation = self._generation
        with self._database.session_scope(write=False) as session:
            verdict = self._look(session, root)
        if verdict.served:
            with self._lock:
                # What changed while we looked would otherwise be remembered as it was before.
                if generation == self._generation:
                    if len(self._known) >= REMEMBERED:
                        self._known.clear()
                    self._known[str(root)] = verdict
        return verdict

    def _look(self, session: Session, root: Cid) -> Verdict:
        until = time.monotonic() + REMEMBERED_SECONDS
        denied = session.get(DeniedCid, hash_cid(root))
        cid = str(root)
        if denied is not None:
            return Verdict(denied.status, False, False, (), until)
        is_public = (File.cid == cid) & (File.visibility == PUBLIC)
        is_pinned = (Pin.cid == cid) & (Pin.status == PINNED_STATUS) & Pin.removed_at.is_(None)
        holders = list(
            dict.fromkeys(
                [
                    *session.scalars(_oldest_first(File.user_id, File.created_at, is_public)),
                    *session.scalars(_oldest_first(Pin.user_id, Pin.created_at, is_pinned)),
                ]
            )
        )[:MOST_HOLDERS]
        served = bool(holders) or _is_in_itself(root)
        if not served and self._any_root and root.inline is None:
            served = not (_is_ciphertext(session, root) or is_private(session, root))
        charges = tuple(Charge(Kind.GATEWAY, holder, cid=cid) for holder in holders or [None])
        return Verdict(None, served, bool(holders), charges, until)

    def _forget(self, cids: Collection[str] | None) -> None:
        with self._lock:
            self._generation += 1
            if cids is None:
                self._known.clear()
                return
            for cid in cids:
                self._known.pop(cid, None)


def _oldest_first(
    owner: InstrumentedAttribute[uuid.UUID], made: InstrumentedAttribute[object], wanted: object
) -> Select[uuid.UUID]:
    """The users of the oldest references that are wanted, each once."""
    oldest = (
        select(owner.label("user_id"), made.label("made"))
        .where(wanted)  # type: ignore[arg-type]
        .order_by(made)
        .limit(OLDEST_REFERENCES)
        .subquery()
    )
    return (
        select(oldest.c.user_id)
        .join(User, User.id == oldest.c.user_id)
        .where(User.deleted_at.is_(None))
        .group_by(oldest.c.user_id)
        .order_by(func.min(oldest.c.made))
        .limit(MOST_HOLDERS)
    )


def _is_in_itself(root: Cid) -> bool:
    """Whether a CID holds all of its content: it tells nobody anything. One with links leads to
    what may not be served."""
    if root.inline is None:
        return False
    try:
        return not links_of(root.codec, root.inline)
    except DagError:
        return False


def _is_ciphertext(session: Session, root: Cid) -> bool:
    """Whether all that on-api knows of it is that it is a private file's. Its root block is the
    same by whatever codec it is asked for."""
    spellings = [str(Cid(codec, root.hash_code, root.digest)) for codec in (RAW, DAG_PB)]
    is_private = exists().where(File.cid.in_(spellings), File.visibility == PRIVATE)
    return bool(session.scalar(select(is_private)))
