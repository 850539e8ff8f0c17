"""Pins as their users see them: requested, listed, replaced, removed. They are carried out in
`jobs.py` and the worker.

Rules beyond the specification's text are those that its clients need: see `PinFilter`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, func, or_, select, update
from sqlalchemy.orm import Session

from on_api.core.errors import InsufficientFunds, NotFound
from on_api.core.ipfs.formats.cid import normalise
from on_api.core.ipfs.port import DagStat
from on_api.core.models import Content, Database, Pin, UserUsage
from on_api.core.models.content import PINNED
from on_api.core.models.database import moment_of, new_id
from on_api.core.models.invalidation import contents_changed
from on_api.core.models.json_contains import Contains
from on_api.core.models.pin import FAILED, PINNED_STATUS, QUEUED
from on_api.core.pagination import TimePage
from on_api.core.services.accounts.access import owned
from on_api.core.services.accounts.names import spellings
from on_api.core.services.content import contents, quota, recorder
from on_api.core.services.pins.records import tell_pinned
from on_api.core.services.shared import events
from on_api.core.services.shared.batching import Batcher
from on_api.core.services.shared.paging import Listing

MILLISECOND = timedelta(milliseconds=1)
"""Resolution of a pin's `created_at`: clients send it back as `before`, so it must be exact."""


@dataclass(frozen=True, slots=True)
class PinRequest:
    """Request for a pin. `origins`: multiaddrs of providers known to the client.
    `source_created_at`: when it was pinned at the service that it is imported from."""

    cid: str
    name: str | None = None
    origins: Sequence[str] = ()
    meta: dict[str, str] | None = None
    source_created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PinFilter:
    """Conditions on pins; all that are set must hold.

    Without `statuses` only pinned ones match, unless cids, name or meta narrow the list: a client
    that looks for a certain pin wants it in every state.
    """

    cids: Sequence[str] = ()
    name: str | None = None
    match: str = "exact"
    statuses: Sequence[str] = ()
    meta: dict[str, str] | None = None

    @property
    def is_narrowed(self) -> bool:
        """True if more than a status is asked for. An empty meta does not narrow."""
        return bool(self.cids or self.meta) or self.name is not None

    @property
    def effective_statuses(self) -> Sequence[str]:
        """Statuses to show; empty: all."""
        return self.statuses if self.statuses or self.is_narrowed else (PINNED_STATUS,)


Record = Callable[[Session, Pin], None]
"""Callback that adds to the transaction which makes a pin."""


class PinService:
    """Service that takes pin requests. `ring` is called after a commit that leaves work for the
    worker."""

    def __init__(
        self, database: Database, deadline: timedelta, ring: Callable[[Session], None]
    ) -> None:
        self._database = database
        self._deadline = deadline
        self._ring = ring
        self._additions = Batcher(self._add_all)

    async def add(
        self, user_id: uuid.UUID, request: PinRequest, record: Record | None = None
    ) -> Pin:
        """Pin a CID: at once if on-api keeps it already, else as a job. Committed, with what
        `record` adds to the transaction.

        Raises `BadRequest` for a malformed CID, `InsufficientFunds` over the quota.
        """
        normalise(request.cid)  # a malformed one must not fail others' transaction
        return await self._additions.do(user_id, (user_id, request, record))

    def add_many(
        self, session: Session, user_id: uuid.UUID, requests: Sequence[PinRequest]
    ) -> Sequence[Pin]:
        """Pin several CIDs of one user, all or none. Raises as `add` does."""
        usage = contents.lock_usage(session, user_id)
        known = contents.lock_all(session, (normalise(request.cid) for request in requests))
        now = moment_of(session)
        return [self._add(session, usage, request, known, now, freed=0) for request in requests]

    def add_pinned(
        self,
        session: Session,
        usage: UserUsage,
        request: PinRequest,
        stat: DagStat,
        secured: Mapping[str, int],
    ) -> Pin:
        """Record what the node has pinned already; `usage` is locked.

        Raises `contents.NotSecuredError`. The quota is not checked: the caller has reserved the
        bytes.
        """
        cid = normalise(request.cid)
        pin = self._new(usage, request, cid, moment_of(session))
        pin.dag_size = recorder.add_reference(session, usage, cid, stat.size, secured)
        pin.blocks = stat.blocks or None
        self._record_pinned(session, usage, pin)
        return pin

    def replace(
        self, session: Session, user_id: uuid.UUID, pin_id: uuid.UUID, request: PinRequest
    ) -> Pin:
        """Pin a CID in place of another pin, which is hidden from now on.

        The old content is held until the new pin has succeeded or failed, so that shared blocks
        stay. Raises `NotFound`, and what `add` raises.
        """
        usage = contents.lock_usage(session, user_id)
        old = _find(session, user_id, pin_id)
        kept = [*kept_cids(session, old.id), *([old.cid] if old.status == PINNED_STATUS else [])]
        known = contents.lock_all(session, [normalise(request.cid), *kept])
        freed = quota.freed_by(session, user_id, kept)
        new = self._add(session, usage, request, known, moment_of(session), freed=freed)
        if new.status == PINNED_STATUS:
            release_kept(session, usage, old.id)
            _remove(session, usage, old)
            return new
        # Content that the old pin was to replace now waits for the new one too.
        session.execute(update(Pin).where(Pin.kept_for == old.id).values(kept_for=new.id))
        if old.status == PINNED_STATUS:
            old.removed_at, old.kept_for = moment_of(session), new.id
            usage.pinned_count -= 1
            contents_changed(session, old.cid)
            events.record(session, user_id, "pin.removed", old.id, cid=old.cid)
        else:
            _remove(session, usage, old)
        session.flush()
        return new

    def remove(self, session: Session, user_id: uuid.UUID, pin_id: uuid.UUID) -> None:
        """Remove a pin; its content stays for other holders. Raises `NotFound`."""
        usage = contents.lock_usage(session, user_id)
        pin = _find(session, user_id, pin_id)
        release_kept(session, usage, pin.id)
        _remove(session, usage, pin)
        if pin.removed_at is not None:
            self._ring(session)

    def _add_all(
        self, pieces: Sequence[tuple[uuid.UUID, PinRequest, Record | None]]
    ) -> Sequence[Pin]:
        """Add the requests of one user that came at the same moment, in one transaction."""
        with self._database.session_scope() as session:
            pins = self.add_many(session, pieces[0][0], [request for _, request, _ in pieces])
            for (_, _, record), pin in zip(pieces, pins, strict=True):
                if record is not None:
                    record(session, pin)
            return pins

    def _add(
        self,
        session: Session,
        usage: UserUsage,
        request: PinRequest,
        known: Mapping[str, Content],
        now: datetime,
        *,
        freed: int,
    ) -> Pin:
        """Add one pin. `known`: the locked contents, by CID, among those requested."""
        cid = normalise(request.cid)
        pin = self._new(usage, request, cid, now)
        content = known.get(cid)
        if content is not None and content.state == PINNED:
            _require_room(session, usage, cid, content.dag_size, freed)
            pin.dag_size = recorder.add_reference(
                session, usage, cid, content.dag_size, pinned_anew=False
            )
            self._record_pinned(session, usage, pin)
        else:
            # The size is not known yet: the worker checks the quota again when it is.
            _require_room(session, usage, cid, 1, freed)
            session.add(pin)
            events.record(session, usage.user_id, "pin.created", pin.id, cid=cid)
            self._ring(session)
        return pin

    def _record_pinned(self, session: Session, usage: UserUsage, pin: Pin) -> None:
        """Record a pin whose content is there from the start."""
        pin.status = PINNED_STATUS
        session.add(pin)
        events.record(session, usage.user_id, "pin.created", pin.id, cid=pin.cid)
        session.flush()
        tell_pinned(session, usage, [(pin.id, pin.cid)])

    def _new(self, usage: UserUsage, request: PinRequest, cid: str, now: datetime) -> Pin:
        return Pin(
            id=new_id(),
            user_id=usage.user_id,
            cid=cid,
            source_cid=request.cid,
            name=request.name,
            meta=request.meta,
            origins=list(request.origins),
            status=QUEUED,
            created_at=contents.next_moment(usage, step=MILLISECOND),
            source_created_at=request.source_created_at,
            due_at=now,
            deadline_at=now + self._deadline,
            attempts=0,
            needs_fetch=False,
        )


def was_touched(pin: Pin) -> bool:
    """Return whether the node may have pinned something for it. An interrupted attempt is not
    counted, but has left its details."""
    return pin.attempts > 0 or pin.details is not None


def lock_contents(session: Session, pin: Pin) -> None:
    """Lock every content that finishing a pin touches, in the common order."""
    contents.lock_all(session, [pin.cid, *kept_cids(session, pin.id)])


def kept_cids(session: Session, pin_id: uuid.UUID) -> Sequence[str]:
    """Return the CIDs that are held until this pin has ended: of pins that it replaces."""
    return session.scalars(select(Pin.cid).where(Pin.kept_for == pin_id)).all()


def release_kept(session: Session, usage: UserUsage, pin_id: uuid.UUID) -> None:
    """Release the contents that were held until this pin has ended."""
    kept = session.scalars(select(Pin).where(Pin.kept_for == pin_id).order_by(Pin.cid)).all()
    for pin in kept:
        session.delete(pin)
    recorder.drop_references(session, usage, [pin.cid for pin in kept])


def end_pin(session: Session, usage: UserUsage, pin: Pin) -> None:
    """Delete a pinned pin, whether it is visible or kept for one that is to replace it. `usage` is
    locked."""
    release_kept(session, usage, pin.id)
    if pin.removed_at is None:
        _remove(session, usage, pin)
    else:
        session.delete(pin)
        recorder.drop_references(session, usage, [pin.cid])


def get_pin(session: Session, user_id: uuid.UUID, pin_id: uuid.UUID) -> Pin:
    """Return one pin of a user. Raises `NotFound` for any other."""
    pin = session.scalar(_mine(user_id).where(Pin.id == pin_id))
    if pin is None:
        raise NotFound
    return pin


def pins_of(
    session: Session, user_id: uuid.UUID, wanted: PinFilter, page: TimePage
) -> tuple[int, Sequence[Pin]]:
    """Return the number of matching pins (`before` and `after` included), and the newest `limit` of
    them."""
    known = None
    if not wanted.is_narrowed and set(wanted.effective_statuses) == {PINNED_STATUS}:
        known = session.scalar(select(UserUsage.pinned_count).where(UserUsage.user_id == user_id))
    statement = _matching(_mine(user_id), wanted)
    return Listing(statement, Pin.created_at, Pin.id, known).by_time(session, page)


def _remove(session: Session, usage: UserUsage, pin: Pin) -> None:
    """Remove a pin. An unfinished one that the node may have pinned is only marked, for the worker
    to end."""
    events.record(session, pin.user_id, "pin.removed", pin.id, cid=pin.cid)
    if pin.status == PINNED_STATUS:
        usage.pinned_count -= 1
        session.delete(pin)
        recorder.drop_references(session, usage, [pin.cid])
    elif pin.status == FAILED or not was_touched(pin):
        session.delete(pin)
        session.flush()
    else:
        pin.removed_at = pin.due_at = moment_of(session)
        session.flush()


def _find(session: Session, user_id: uuid.UUID, pin_id: uuid.UUID) -> Pin:
    pin = session.scalar(_mine(user_id).where(Pin.id == pin_id).with_for_update())
    if pin is None:
        raise NotFound
    return pin


def _require_room(session: Session, usage: UserUsage, cid: str, dag_size: int, freed: int) -> None:
    with session.no_autoflush:  # earlier additions are written together
        room = quota.Room.of(usage)
        if room.has(dag_size - freed):
            return
        # A user over a lowered quota may still do what costs nothing more.
        if not room.has(quota.charge_of(session, usage.user_id, cid, dag_size) - freed):
            raise InsufficientFunds


def _mine(user_id: uuid.UUID) -> Select[Pin]:
    return owned(select(Pin), Pin.user_id, user_id).where(Pin.removed_at.is_(None))


def _matching(statement: Select[Pin], wanted: PinFilter) -> Select[Pin]:
    if wanted.cids:
        statement = statement.where(Pin.cid.in_([normalise(cid) for cid in wanted.cids]))
    if wanted.name is not None:
        ways = (_named(name, wanted.match) for name in spellings(wanted.name))
        statement = statement.where(or_(*ways))
    if wanted.effective_statuses:
        statement = statement.where(Pin.status.in_(wanted.effective_statuses))
    if wanted.meta:
        statement = statement.where(Contains(Pin.meta, wanted.meta))
    return statement


def _named(name: str, match: str) -> ColumnElement[bool]:
    """Return the SQL condition for one of the specification's four ways to match. Positions, not
    LIKE: `%` and `_` are plain characters here, and SQLite's LIKE ignores case."""
    if match == "iexact":
        return func.lower(Pin.name) == func.lower(name)
    if match == "partial":
        return func.strpos(Pin.name, name) > 0
    if match == "ipartial":
        return func.strpos(func.lower(Pin.name), func.lower(name)) > 0
    return Pin.name == name
