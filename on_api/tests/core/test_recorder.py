"""One by one, in batches, and in batches that a bundle covers: whatever is recorded, and in
whatever order, the end is the same, and what the rows of files and pins say."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from on_api.core.ipfs.formats.bundle import make_bundle
from on_api.core.ipfs.formats.cid import RAW, SHA2_256, Cid
from on_api.core.ipfs.port import DagStat
from on_api.core.models import Content, Database, Event, File, Holding, Pin, UserUsage
from on_api.core.models.content import PINNED, UNPINNING
from on_api.core.models.database import new_id, utc_now
from on_api.core.services.content import contents, recorder
from on_api.core.services.content.contents import NotSecuredError
from on_api.core.services.files.files import delete_file
from on_api.core.services.pins import jobs, pins
from on_api.core.services.pins.jobs import PinClaim
from on_api.core.services.uploads.stored_files import MICROSECOND
from on_api.tests.testing.rows import pin_row, user_row

BLOCKS = [b"block %d" % number * (number + 1) for number in range(6)]
CIDS = [Cid(RAW, SHA2_256, hashlib.sha256(block).digest()) for block in BLOCKS]
SIZES = {str(cid): len(block) for cid, block in zip(CIDS, BLOCKS, strict=True)}
USERS = 2
NO_GRACE = timedelta(0)
LIFE = timedelta(minutes=1)

_user = st.integers(0, USERS - 1)
_some = st.lists(st.integers(0, len(CIDS) - 1), min_size=1, max_size=5)


@dataclass(frozen=True)
class Store:
    """A user stores files of these contents."""

    user: int
    contents: Sequence[int]


@dataclass(frozen=True)
class Pinned:
    """The node has pinned these for a user's pins."""

    user: int
    contents: Sequence[int]


@dataclass(frozen=True)
class Ask:
    """A user asks for pins on what on-api may keep already."""

    user: int
    contents: Sequence[int]


@dataclass(frozen=True)
class Forget:
    """A user deletes their oldest files, and their oldest pins."""

    user: int
    files: int
    pins: int


@dataclass(frozen=True)
class Collect:
    """What nobody holds is unpinned; `half`: the node is still at it."""

    half: bool


Step = Store | Pinned | Ask | Forget | Collect

STEPS = st.lists(
    st.one_of(
        st.builds(Store, _user, _some),
        st.builds(Pinned, _user, st.lists(st.integers(0, 5), min_size=1, max_size=5, unique=True)),
        st.builds(Ask, _user, _some),
        st.builds(Forget, _user, st.integers(0, 4), st.integers(0, 3)),
        st.builds(Collect, st.booleans()),
    ),
    min_size=1,
    max_size=10,
)


class _Rollback(Exception):
    """Ends an example: nothing of it stays."""


@dataclass
class Run:
    """One way to record. `together`: in batches; `bundles`: files of a batch live in a bundle."""

    session: Session
    together: bool
    bundles: bool = False
    users: list[uuid.UUID] = field(default_factory=list)
    told: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Events that there must be: kind and CID."""
    secured: Counter[str] = field(default_factory=Counter)
    """How often the node's pin on a content was made sure of."""
    service: pins.PinService = field(init=False)

    def __post_init__(self) -> None:
        self.service = pins.PinService(Nowhere(), timedelta(days=1), lambda _session: None)
        for number in range(USERS):
            user = user_row(f"user {number}")
            self.session.add(user)
            self.users.append(user.id)
        self.session.flush()

    def do(self, step: Step) -> None:
        """Take one step."""
        if isinstance(step, Collect):
            self._collect(half=step.half)
            return
        if isinstance(step, Forget):
            self._forget(step)
            return
        cids = [str(CIDS[number]) for number in step.contents]
        if not isinstance(step, Ask):
            kind = "file.created" if isinstance(step, Store) else "pin.pinned"
            self.told.update((kind, cid) for cid in cids)
        act = {Store: self._store, Pinned: self._pinned, Ask: self._ask}[type(step)]
        for some in [cids] if self.together else [[cid] for cid in cids]:
            self._secured(partial(act, step.user, some))

    def _secured(self, act: Callable[[dict[str, int]], None]) -> None:
        """Try until every pin can be relied on, as everybody does; `Keeper.secure` is done here."""
        secured: dict[str, int] = {}
        while True:
            try:
                with self.session.begin_nested():
                    act(secured)
            except NotSecuredError as error:
                content = contents.lock(self.session, error.cid)
                assert content is not None
                if content.state == UNPINNING:
                    contents.make_absent(content)
                    self.session.flush()
                secured[error.cid] = content.generation
                self.secured[error.cid] += 1
            else:
                return

    def _store(self, user: int, cids: Sequence[str], secured: dict[str, int]) -> None:
        usage = contents.lock_usage(self.session, self.users[user])
        sizes = {cid: SIZES[cid] for cid in cids}
        fresh = sizes.keys() - contents.kept_sizes(self.session, sizes).keys()
        bundle = None
        if self.bundles and fresh:
            blocks = [(cid, BLOCKS[n]) for n, cid in enumerate(CIDS) if str(cid) in fresh]
            bundle = make_bundle(blocks, new_id().bytes)
        locked = recorder.lock_contents(
            self.session,
            sizes,
            secured=secured,
            own_pins=() if self.bundles else sizes,
            bundle=bundle,
            covered=fresh if bundle else (),
        )
        locked.require_secured()
        usages = {usage.user_id: usage}
        references = Counter((usage.user_id, cid) for cid in cids)
        recorder.add_references(self.session, usages, references, locked)
        recorder.record_files(self.session, usages, [self._row(usage, cid) for cid in cids])

    def _row(self, usage: UserUsage, cid: str) -> dict[str, Any]:
        return {
            "id": new_id(),
            "user_id": usage.user_id,
            "cid": cid,
            "name": f"file of {cid}",
            "size": SIZES[cid],
            "media_type": "text/plain",
            "sha256": bytes(32),
            "visibility": "public",
            "meta": {},
            "created_at": contents.next_moment(usage, step=MICROSECOND),
        }

    def _pinned(self, user: int, cids: Sequence[str], secured: dict[str, int]) -> None:
        claims = [self._claim(user, cid) for cid in cids]
        done: set[uuid.UUID] = set()
        if self.together:
            stats = {claim.id: DagStat(SIZES[claim.cid], 1) for claim in claims}
            done = jobs.finish_all(self.session, claims, stats)
        for claim in claims:
            if claim.id not in done:
                stat = DagStat(SIZES[claim.cid], 1)
                assert jobs.finish(self.session, claim, stat, secured)

    def _claim(self, user: int, cid: str) -> PinClaim:
        usage = contents.lock_usage(self.session, self.users[user])
        pin = pin_row(
            usage.user_id,
            cid,
            created_at=contents.next_moment(usage, step=pins.MILLISECOND),
            attempts=1,
            lease_token=new_id(),
            lease_until=utc_now() + LIFE,
        )
        self.session.add(pin)
        self.session.flush()
        assert pin.lease_token is not None
        ends_at = time.monotonic() + 60
        return PinClaim(
            pin.id, pin.lease_token, pin.user_id, cid, (), 1, ends_at, False, None, None, None
        )

    def _ask(self, user: int, cids: Sequence[str], _secured: dict[str, int]) -> None:
        requests = [pins.PinRequest(cid) for cid in cids]
        asked = self.service.add_many(self.session, self.users[user], requests)
        self.told.update(("pin.pinned", pin.cid) for pin in asked if pin.status == "pinned")

    def _forget(self, step: Forget) -> None:
        user_id = self.users[step.user]
        files = self.session.scalars(
            select(File).where(File.user_id == user_id).order_by(File.created_at).limit(step.files)
        ).all()
        usage = contents.lock_usage(self.session, user_id)
        if self.together:
            for file in files:
                self.session.delete(file)
            usage.file_count -= len(files)
            recorder.drop_references(self.session, usage, [file.cid for file in files])
        else:
            for file in files:
                delete_file(self.session, user_id, file.id)
        asked = select(Pin.id).where(Pin.user_id == user_id, Pin.status == "pinned")
        for pin_id in self.session.scalars(asked.order_by(Pin.created_at).limit(step.pins)).all():
            self.service.remove(self.session, user_id, pin_id)

    def _collect(self, *, half: bool) -> None:
        contents.let_go(self.session, NO_GRACE, 100)
        for cid in sorted(contents.removable(self.session, NO_GRACE, 100)):
            removal = contents.begin_removal(self.session, cid, grace=NO_GRACE, life=LIFE)
            if removal is not None and not (half and cid in SIZES):
                assert contents.finish_removal(self.session, removal)

    def seen(self) -> dict[str, object]:
        """All that is recorded, times and ids left out."""
        session = self.session
        session.flush()
        number = {user_id: place for place, user_id in enumerate(self.users)}
        events = session.execute(select(Event.user_id, Event.kind, Event.data))
        kinds = Counter(
            (number[owner], kind, str(data.get("cid")))
            for owner, kind, data in events
            if owner in number and not kind.endswith(".deleted")
        )
        files = session.execute(select(File.user_id, File.name, File.created_at))
        rows = sorted((number[u], at, name) for u, name, at in files if u in number)
        asked = session.execute(select(Pin.user_id, Pin.cid, Pin.status, Pin.dag_size, Pin.blocks))
        columns = (UserUsage.file_count, UserUsage.pinned_count, UserUsage.storage_bytes)
        used = session.execute(select(UserUsage.user_id, *columns))
        held = session.execute(
            select(Holding.user_id, Holding.cid, Holding.references, Holding.bytes)
        )
        known = session.execute(
            select(
                Content.cid, Content.state, Content.dag_size, Content.unreferenced_at.is_not(None)
            ).where(Content.cid.in_(SIZES))
        )
        return {
            "events": kinds,
            "files": [(user, name) for user, _, name in rows],
            "pins": Counter((number[u], *facts) for u, *facts in asked if u in number),
            "usage": {number[u]: tuple(counts) for u, *counts in used if u in number},
            "holdings": {(number[u], cid): tuple(counts) for u, cid, *counts in held},
            "contents": {
                cid: (_settled(state), size, bool(stamped) and state == PINNED)
                for cid, state, size, stamped in known
            },
        }


def check_sums(seen: dict[str, Any], told: Counter[tuple[str, str]]) -> None:
    """Compare what is counted with what it counts."""
    files = Counter((user, name.removeprefix("file of ")) for user, name in seen["files"])
    pinned: Counter[tuple[int, str]] = Counter()
    for (user, cid, status, size, blocks), count in seen["pins"].items():
        if status == "pinned":
            assert size == SIZES[cid]
            assert blocks in {1, None}
            pinned[user, cid] += count
    held = files + pinned
    assert seen["holdings"] == {key: (count, SIZES[key[1]]) for key, count in held.items()}
    for user in range(USERS):
        counted = [
            sum(n for (owner, _), n in each.items() if owner == user) for each in (files, pinned)
        ]
        stored = sum(SIZES[cid] for owner, cid in held if owner == user)
        assert seen["usage"][user] == (*counted, stored)
    somebodys = {cid for _, cid in held}
    for cid, (state, size, is_stamped) in seen["contents"].items():
        assert (state, size) == (PINNED, SIZES[cid]) or cid not in somebodys
        assert is_stamped is (state == PINNED and cid not in somebodys)
    events = Counter[tuple[str, str]]()
    for (_, kind, cid), count in seen["events"].items():
        events[kind, cid] += count
    assert {
        kind: n for kind, n in events.items() if kind[0] in {"file.created", "pin.pinned"}
    } == told


def _settled(state: str) -> str:
    """A member of a bundle is gone at once; what has a pin of its own may still be at it."""
    return PINNED if state == PINNED else "not pinned"


class Nowhere(Database):
    """No database: what is called here is given a session."""

    def __init__(self) -> None:
        pass


def play(
    database: Database, steps: Sequence[Step], *, together: bool, bundles: bool = False
) -> dict[str, object]:
    """What is recorded after these steps. Nothing of it stays."""
    result: dict[str, object] = {}
    try:
        with database.session_scope() as session:
            run = Run(session, together, bundles)
            for step in steps:
                run.do(step)
            result = run.seen()
            check_sums(result, run.told)
            if not bundles:
                result["secured"] = run.secured
            raise _Rollback
    except _Rollback:
        return result


def check(database: Database, examples: int) -> None:
    """Compare the three ways in so many examples."""

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=examples < 1000,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(STEPS)
    def compare(steps: list[Step]) -> None:
        alone = play(database, steps, together=False)
        assert play(database, steps, together=True) == alone
        del alone["secured"]  # what is in a bundle need not be made sure of
        assert play(database, steps, together=True, bundles=True) == alone

    compare()


def test_batches_end_like_what_is_recorded_one_by_one(database: Database) -> None:
    """References, holdings, charges, stamps, states, counters, events, rows of files and pins."""
    check(database, 250)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_very_many_sequences(database: Database) -> None:
    """The same with 10,000 sequences on each kind of database."""
    check(database, 10_000)
