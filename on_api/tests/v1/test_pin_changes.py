"""Pins that are replaced and removed in every state, and what their users are charged meanwhile.

The worker is played here, step by step: each state is met for certain.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest

from on_api.core.errors import InsufficientFunds
from on_api.core.ipfs.port import DagStat
from on_api.core.models import Content, Holding, Pin, User, UserUsage
from on_api.core.services.pins import jobs as pin_jobs
from on_api.core.services.pins.jobs import PinClaim
from on_api.tests.conftest import Account, Server
from on_api.tests.testing.pins import add_pin, charged, list_pins, some_cid

EVERY = "queued,pinning,pinned,failed"
LIFE = timedelta(minutes=1)
KB = 1000


class Bench:
    """The worker's and the administrator's hands on the database."""

    def __init__(self, server: Server) -> None:
        self.scope = server.services.database.session_scope

    def claim(self, pin: dict[str, Any], *, fetch: bool = False) -> PinClaim:
        """Take this pin as a worker does."""
        with self.scope() as session:
            row = session.get_one(Pin, uuid.UUID(pin["requestid"]))
            row.needs_fetch = fetch
            session.flush()
            claims = pin_jobs.claim(session, row.user_id, 100, LIFE, fetch=fetch)
        [claim] = [claim for claim in claims if str(claim.id) == pin["requestid"]]
        return claim

    def finish(self, claim: PinClaim, size: int) -> bool:
        """The node has pinned it."""
        with self.scope() as session:
            return pin_jobs.finish(session, claim, DagStat(size, 1), {})

    def fail(self, claim: PinClaim, reason: str = "nobody has it") -> None:
        """The worker gives it up."""
        with self.scope() as session:
            pin_jobs.fail(session, claim, reason)

    def is_held(self, cid: str) -> bool:
        """Whether anybody's reference keeps a content on the node."""
        with self.scope(write=False) as session:
            return session.get_one(Content, cid).unreferenced_at is None

    def rows(self, account: Account) -> int:
        """Rows of pins, seen or not."""
        with self.scope(write=False) as session:
            return session.query(Pin).filter_by(user_id=uuid.UUID(account.id)).count()

    def set_quota(self, account: Account, quota: int | None) -> None:
        """As an administrator would."""
        with self.scope() as session:
            session.get_one(User, uuid.UUID(account.id)).storage_quota = quota

    def check(self, account: Account) -> None:
        """The counters say what the rows say."""
        user_id = uuid.UUID(account.id)
        with self.scope(write=False) as session:
            usage = session.get_one(UserUsage, user_id)
            held = session.query(Holding).filter_by(user_id=user_id).all()
            assert usage.storage_bytes == sum(holding.bytes for holding in held)
        assert usage.pinned_count == list_pins(account, status="pinned")["count"]


@pytest.fixture
def bench(resting: Server) -> Bench:
    """Hands on the resting server's database."""
    return Bench(resting)


def keep(account: Account, size: int) -> str:
    """Content on the node that nobody refers to any more."""
    file = account.upload(os.urandom(size))
    account.client.delete(f"/v1/files/{file['id']}")
    return str(file["cid"])


def replace(account: Account, pin: dict[str, Any], cid: str | None = None) -> dict[str, Any]:
    """Pin something else instead; the old one is gone at once."""
    url = f"/v1/pins/{pin['requestid']}"
    answer = account.client.post(url, json={"cid": cid or some_cid()})
    assert answer.status_code == 202, answer.text
    new = dict(answer.json())
    assert new["requestid"] != pin["requestid"]
    assert new["created"] > pin["created"]
    assert account.client.get(url).status_code == 404
    assert account.client.delete(url).status_code == 404
    assert account.client.post(url, json={"cid": some_cid()}).status_code == 404
    return new


def remove(account: Account, pin: dict[str, Any]) -> None:
    """Remove a pin; it is gone at once."""
    url = f"/v1/pins/{pin['requestid']}"
    assert account.client.delete(url).status_code == 202
    assert account.client.get(url).status_code == 404


def status_of(account: Account, pin: dict[str, Any]) -> str:
    """As its user sees it."""
    return str(account.client.get(f"/v1/pins/{pin['requestid']}").json()["status"])


def ids(account: Account) -> list[str]:
    """Of all pins of a user."""
    return [pin["requestid"] for pin in list_pins(account, status=EVERY)["results"]]


def test_replaced_by_what_is_there(bench: Bench, carol: Account) -> None:
    """At once: the new one is charged and held, the old one is not."""
    old_cid, new_cid = keep(carol, 3 * KB), keep(carol, 5 * KB)
    old = add_pin(carol, old_cid)
    assert charged(carol) == 3 * KB
    new = replace(carol, old, new_cid)
    assert new["status"] == "pinned"
    assert ids(carol) == [new["requestid"]]
    assert charged(carol) == 5 * KB
    assert (bench.is_held(old_cid), bench.is_held(new_cid)) == (False, True)
    bench.check(carol)


def test_replaced_by_the_same(bench: Bench, carol: Account) -> None:
    """A new request for the same content; held and charged all the time."""
    cid = keep(carol, 3 * KB)
    new = replace(carol, add_pin(carol, cid), cid)
    assert (new["status"], charged(carol), bench.is_held(cid)) == ("pinned", 3 * KB, True)
    assert ids(carol) == [new["requestid"]]
    bench.check(carol)


@pytest.mark.parametrize("end", ["pinned", "failed", "removed queued", "removed pinning"])
def test_what_is_replaced_is_held_until_the_new_one_ends(
    bench: Bench, carol: Account, end: str
) -> None:
    """Nobody sees it any more, but blocks of both stay, and are charged; then it is let go."""
    old_cid = keep(carol, 3 * KB)
    new = replace(carol, add_pin(carol, old_cid))
    assert new["status"] == "queued"
    assert ids(carol) == [new["requestid"]]
    assert list_pins(carol)["count"] == 0
    claim = bench.claim(new) if end != "removed queued" else None
    assert bench.is_held(old_cid)
    assert charged(carol) == 3 * KB
    bench.check(carol)
    if claim is None or end == "removed pinning":
        remove(carol, new)
    if claim is not None and end == "failed":
        bench.fail(claim)
    elif claim is not None:
        assert bench.finish(claim, 4 * KB) is (end == "pinned")
    assert not bench.is_held(old_cid)
    assert charged(carol) == (4 * KB if end == "pinned" else 0)
    assert bench.rows(carol) == len(ids(carol)) == (1 if end in {"pinned", "failed"} else 0)
    bench.check(carol)


@pytest.mark.parametrize("last", ["there", "to be fetched"])
def test_a_chain_of_replacements_holds_the_first_to_the_end(
    bench: Bench, carol: Account, last: str
) -> None:
    """Pinned, replaced by what is not here yet, which is itself replaced, and so on."""
    first_cid, last_cid = keep(carol, 3 * KB), keep(carol, 5 * KB)
    pin = add_pin(carol, first_cid)
    for state in ("queued", "pinning", "queued"):
        pin = replace(carol, pin)
        if state == "pinning":
            bench.claim(pin)
    assert bench.is_held(first_cid)
    assert ids(carol) == [pin["requestid"]]
    pin = replace(carol, pin, last_cid if last == "there" else None)
    if last != "there":
        assert bench.is_held(first_cid)
        assert bench.finish(bench.claim(pin), 5 * KB)
    assert status_of(carol, pin) == "pinned"
    assert not bench.is_held(first_cid)
    assert charged(carol) == 5 * KB
    bench.check(carol)


@pytest.mark.parametrize("state", ["queued", "waiting", "pinning", "failed"])
@pytest.mark.parametrize("way", ["remove", "replace"])
def test_what_has_no_content_yet_just_goes(
    bench: Bench, carol: Account, state: str, way: str
) -> None:
    """A worker that is at it records nothing, and leaves nothing behind."""
    pin = add_pin(carol)
    claim = None
    if state != "queued":
        claim = bench.claim(pin, fetch=True)
        assert status_of(carol, pin) == "pinning"
    if claim is not None and state == "failed":
        bench.fail(claim)
    with bench.scope() as session:
        if claim is not None and state == "waiting":
            pin_jobs.put_back(session, claim, due_in=timedelta(hours=1), details="later")
    if way == "remove":
        remove(carol, pin)
        assert ids(carol) == []
    else:
        new = replace(carol, pin)
        assert ids(carol) == [new["requestid"]]
    if claim is not None and state == "pinning":
        with bench.scope() as session:
            assert pin_jobs.renew(session, {claim.id: (claim.token, None)}, LIFE) == {claim.id}
        assert not bench.finish(claim, KB)
    elif state == "waiting":
        # It is due at once, so that the worker looks after what the last attempt left.
        again = bench.claim(pin, fetch=True)
        assert again.removed
        bench.fail(again)
    assert bench.rows(carol) == (0 if way == "remove" else 1)
    assert charged(carol) == 0
    bench.check(carol)


def test_a_failed_pin_says_why(bench: Bench, carol: Account) -> None:
    """While it waits and when it has failed; progress while it comes."""
    pin = add_pin(carol)
    claim = bench.claim(pin, fetch=True)
    with bench.scope() as session:
        pin_jobs.renew(session, {claim.id: (claim.token, DagStat(700, 7))}, LIFE)
    url = f"/v1/pins/{pin['requestid']}"
    seen = carol.client.get(url).json()
    assert seen["status"] == "pinning"
    assert seen["info"] == {"fetched_bytes": "700", "fetched_blocks": "7"}
    bench.fail(claim, "x" * 600)
    seen = carol.client.get(url).json()
    assert seen["status"] == "failed"
    assert seen["info"]["status_details"] == "x" * 500
    assert [pin["requestid"] for pin in list_pins(carol, status="failed")["results"]] == ids(carol)


def refused(answer: httpx.Response) -> bool:
    """Whether it was refused for the quota, in the specification's words."""
    if answer.status_code == 202:
        return False
    assert answer.status_code == 409
    assert answer.json()["error"]["reason"] == "INSUFFICIENT_FUNDS"
    return True


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_quota_holds(bench: Bench, carol: Account, version: str) -> None:
    """Known content by its size, unknown content when nothing is left; what is held is free."""
    held, other, small = keep(carol, 4 * KB), keep(carol, 2 * KB), keep(carol, KB)

    def add(cid: str) -> httpx.Response:
        return carol.client.post(f"/{version}/pins", json={"cid": cid})

    bench.set_quota(carol, 3 * KB)
    assert refused(add(held))
    assert (ids(carol), bench.rows(carol), charged(carol)) == ([], 0, 0)
    assert not refused(add(other))
    assert not refused(add(some_cid()))
    bench.set_quota(carol, 2 * KB)
    assert refused(add(some_cid()))
    assert not refused(add(other))
    # Lowered below what is used: what costs nothing more is still fine.
    bench.set_quota(carol, 0)
    kept = add(other)
    assert not refused(kept)
    assert refused(add(held))
    for old in ids(carol):
        if old != kept.json()["requestid"]:
            remove(carol, {"requestid": old})
    assert replace(carol, kept.json(), small)["status"] == "pinned"
    bench.check(carol)


def test_more_than_the_quota_is_not_recorded(bench: Bench, carol: Account) -> None:
    """How much it is shows only when it has come: the worker is refused, and nothing is charged."""
    bench.set_quota(carol, 3 * KB)
    pin = add_pin(carol)
    claim = bench.claim(pin)
    assert claim.room == 3 * KB
    with pytest.raises(InsufficientFunds):
        bench.finish(claim, 3 * KB + 1)
    assert status_of(carol, pin) == "queued"
    assert charged(carol) == 0
    assert bench.finish(claim, 3 * KB)
    bench.check(carol)


def test_a_replacement_may_use_what_it_frees(bench: Bench, carol: Account) -> None:
    """Whether the new content is there or must come."""
    first, second = keep(carol, 3 * KB), keep(carol, 4 * KB)
    pin = add_pin(carol, first)
    bench.set_quota(carol, 4 * KB)
    pin = replace(carol, pin, second)
    assert charged(carol) == 4 * KB
    pin = replace(carol, pin)
    claim = bench.claim(pin)
    assert claim.room == 4 * KB
    with pytest.raises(InsufficientFunds):
        bench.finish(claim, 4 * KB + 1)
    assert bench.is_held(second)
    assert bench.finish(claim, 4 * KB)
    assert charged(carol) == 4 * KB
    # Over two steps: what the first one replaced is what the second one frees.
    pin = replace(carol, replace(carol, pin), first)
    assert (pin["status"], charged(carol)) == ("pinned", 3 * KB)
    bench.check(carol)


def test_a_replacement_frees_nothing_that_is_held_otherwise(bench: Bench, carol: Account) -> None:
    """By a file or another pin: then both would count, and the old pin stays."""
    file, other = carol.upload(os.urandom(3 * KB)), keep(carol, 2 * KB)
    pin = add_pin(carol, str(file["cid"]))
    bench.set_quota(carol, 4 * KB)
    url = f"/v1/pins/{pin['requestid']}"
    assert refused(carol.client.post(url, json={"cid": other}))
    assert status_of(carol, pin) == "pinned"
    assert charged(carol) == 3 * KB
    carol.client.delete(f"/v1/files/{file['id']}")
    assert not refused(carol.client.post(url, json={"cid": other}))
    assert charged(carol) == 2 * KB
    bench.check(carol)


def at_once(*calls: Callable[[], httpx.Response]) -> list[int]:
    """The statuses of requests sent at the same moment."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return sorted(future.result().status_code for future in [pool.submit(c) for c in calls])


@pytest.mark.parametrize("state", ["pinned", "queued"])
def test_one_pin_is_replaced_or_removed_once(bench: Bench, carol: Account, state: str) -> None:
    """Of many who do it at the same moment one has done it."""
    contents = [keep(carol, KB + n) for n in range(4)]
    pin = add_pin(carol, contents[0] if state == "pinned" else None)
    url = f"/v1/pins/{pin['requestid']}"
    new = [contents[1], contents[2], some_cid(), some_cid()]
    calls: list[Callable[[], httpx.Response]] = [
        lambda cid=cid: carol.client.post(url, json={"cid": cid})  # type: ignore[misc]
        for cid in new
    ]
    calls += [lambda: carol.client.delete(url)] * 2
    assert at_once(*calls) == [202, 404, 404, 404, 404, 404]
    left = ids(carol)
    assert len(left) <= 1
    for requestid in left:
        remove(carol, {"requestid": requestid})
    assert charged(carol) == 0
    assert not any(bench.is_held(cid) for cid in contents)
    bench.check(carol)


def test_many_users_pin_and_unpin_one_content(
    bench: Bench, resting: Server, carol: Account, dave: Account
) -> None:
    """At the same moment: each is charged as their own references say."""
    cid = keep(carol, KB)

    def turn(account: Account) -> httpx.Response:
        pin = add_pin(account, cid)
        replaced = account.client.post(f"/v1/pins/{pin['requestid']}", json={"cid": cid}).json()
        return account.client.delete(f"/v1/pins/{replaced['requestid']}")

    calls = [lambda account=account: turn(account) for account in (carol, dave) * 6]
    assert at_once(*calls) == [202] * 12
    assert (charged(carol), charged(dave)) == (0, 0)
    assert not bench.is_held(cid)
    for account in (carol, dave):
        bench.check(account)


@pytest.mark.parametrize("state", ["unpinning", "absent"])
def test_content_that_is_going_is_a_job(
    bench: Bench, resting: Server, carol: Account, state: str
) -> None:
    """Not promised before the node's pin is certain."""
    cid = keep(carol, KB)
    with resting.services.database.session_scope() as session:
        session.get_one(Content, cid).state = state
    assert add_pin(carol, cid)["status"] == "queued"
    assert charged(carol) == 0
