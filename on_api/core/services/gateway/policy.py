"""Policy of the gateway: what it may serve, and who is charged. Answers are made in
`public/gateway/app.py`.

Verdicts are cached until something changes that they depend on. Refusals are not cached: new
uploads must be served at once.
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

REMEMBERED_VERDICTS = 100_000
REMEMBERED_SECONDS = 60.0
"""Seconds for which a verdict is used even without an invalidation: new holders announce
nothing."""
OLDEST_REFERENCES = 1000
"""Most references of a kind that are read: one content may have any number."""
MOST_HOLDERS = 16
"""Most holders whose budgets are tried."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict on one root, with every path below it."""

    denied: int | None
    """Status to answer; None: not on the deny list."""
    served: bool
    is_listed: bool
    """True if a public file or a pin refers to the root."""
    charges: Sequence[Charge]
    """Charges in the order in which they are tried: the first one within its budget is used."""
    until: float
    """End of validity on the clock of `time.monotonic`."""


class GatewayPolicy:
    """Policy by root. Thread-safe; `recall` only reads memory."""

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
        """Return the cached verdict on a root (normalised), or None."""
        verdict = self._known.get(root)
        if verdict is None or verdict.until < time.monotonic() or not self._invalidations.trusted:
            return None
        return verdict

    def decide(self, root: Cid) -> Verdict:
        """Return the verdict on a root, from the database. Raises `DatabaseUnavailable`."""
        generation = self._generation
        with self._database.session_scope(write=False) as session:
            verdict = self._look(session, root)
        if verdict.served:
            with self._lock:
                # A change during the look-up would otherwise leave an outdated verdict in the
                # cache.
                if generation == self._generation:
                    if len(self._known) >= REMEMBERED_VERDICTS:
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
    """Select the users of the oldest matching references, each once."""
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
    """Return whether a CID contains its whole content, so that serving it reveals nothing. An
    inline CID with links does not count: the links lead to content that may not be served."""
    if root.inline is None:
        return False
    try:
        return not links_of(root.codec, root.inline)
    except DagError:
        return False


def _is_ciphertext(session: Session, root: Cid) -> bool:
    """Return whether a private file has this root. Its root block is the same under whatever codec
    it is asked for."""
    spellings = [str(Cid(codec, root.hash_code, root.digest)) for codec in (RAW, DAG_PB)]
    is_private = exists().where(File.cid.in_(spellings), File.visibility == PRIVATE)
    return bool(session.scalar(select(is_private)))
