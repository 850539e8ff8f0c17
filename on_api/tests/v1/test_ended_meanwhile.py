"""What is under way when its key ends: refused at the end, and nothing of it is recorded, charged
or left reserved."""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import select

from on_api.core.errors import Unauthorized
from on_api.core.models import ApiKey, File, IdempotencyRecord, Lease, Pin, UserUsage
from on_api.core.models.database import utc_now
from on_api.core.services.accounts.idempotency import Answered
from on_api.core.services.container import Services
from on_api.core.services.content.reservations import Announced
from on_api.core.services.files.files import FileFacts
from on_api.core.services.uploads.stored_files import IncomingFile
from on_api.tests.conftest import PASSWORD, Account, Server
from on_api.tests.testing.bundles import AT_ONCE, beside, upload
from on_api.tests.testing.deadline import until

MIB = 1024 * 1024


@dataclass
class Slow:
    """A body that stops in its middle until it may go on."""

    data: bytes
    started: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[bytes]:
        half = len(self.data) // 2
        yield self.data[:half]
        self.started.set()
        self.go_on.wait(60)
        yield self.data[half:]


def is_used(server: Server, account: Account) -> bool:
    """Whether the server has let anybody in by the key that is about to end."""
    mine = (ApiKey.user_id == uuid.UUID(account.id), ApiKey.name.in_(("k", "login")))
    used = select(ApiKey.id).where(*mine, ApiKey.last_used_at.is_not(None))
    with server.services.database.session_scope(write=False) as session:
        return session.scalar(used) is not None


def meanwhile(
    server: Server,
    account: Account,
    send: Callable[[Slow], httpx.Response],
    size: int,
    end: Callable[[], object],
    *,
    is_read_first: bool = False,
) -> httpx.Response:
    """The answer to what is sent with a key that wasn't used before, if `end` happens while the
    server waits for the rest of it. `is_read_first`: who asks is looked at after the body."""
    slow, answers = Slow(os.urandom(size)), []
    sending = threading.Thread(target=lambda: answers.append(send(slow)), daemon=True)
    sending.start()
    try:
        assert slow.started.wait(60)
        if not is_read_first:
            until(lambda: is_used(server, account), "it is let in")
        end()
    finally:
        slow.go_on.set()
        sending.join(60)
    answer: httpx.Response = answers[0]
    return answer


def revoke(_server: Server, account: Account, key_id: str) -> None:
    """By its user."""
    account.client.delete(f"/v1/keys/{key_id}").raise_for_status()


def expire(server: Server, _account: Account, key_id: str) -> None:
    """By itself."""
    with server.services.database.session_scope() as session:
        key = session.get_one(ApiKey, uuid.UUID(key_id))
        key.expires_at = utc_now() - timedelta(seconds=1)


def deactivate(server: Server, account: Account, _key_id: str) -> None:
    """By an administrator."""
    admin = server.new_user(admin=True)
    with admin.client as client:
        client.patch(f"/v1/users/{account.id}", json={"active": False}).raise_for_status()


def remove(server: Server, account: Account, _key_id: str) -> None:
    """The whole account."""
    admin = server.new_user(admin=True)
    with admin.client as client:
        client.delete(f"/v1/users/{account.id}").raise_for_status()


def change_password(_server: Server, account: Account, _key_id: str) -> None:
    """Which ends logins."""
    change = {"current_password": PASSWORD, "new_password": "another horse battery"}
    account.client.post("/v1/users/me/password", json=change).raise_for_status()


WAYS = [revoke, expire, deactivate, remove]


def streamed(client: httpx.Client, slow: Slow) -> httpx.Response:
    """Of unknown length."""
    return client.put("/v1/files?name=x", content=iter(slow))


def announced(client: httpx.Client, slow: Slow) -> httpx.Response:
    """Of known length: a small one comes into memory."""
    length = {"Content-Length": str(len(slow.data))}
    return client.put("/v1/files?name=x", content=iter(slow), headers=length)


def encrypted(client: httpx.Client, slow: Slow) -> httpx.Response:
    """A private one."""
    return client.put("/v1/files?name=x&visibility=private", content=iter(slow))


def as_form(client: httpx.Client, slow: Slow) -> httpx.Response:
    """Several parts, all or none."""

    def body() -> Iterator[bytes]:
        part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n'
        yield part % b"one" + b"one\r\n" + part % b"two"
        yield from slow
        yield b"\r\n--b--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    return client.post("/v1/files", content=body(), headers=kind)


def once(client: httpx.Client, slow: Slow) -> httpx.Response:
    """With an Idempotency-Key."""
    key = {"Idempotency-Key": "once"}
    return client.put("/v1/files?name=x", content=iter(slow), headers=key)


SORTS = [
    (streamed, 3 * MIB),
    (announced, 3 * MIB),
    (announced, 20_000),
    (encrypted, MIB),
    (as_form, MIB),
    (once, MIB),
]


def nothing_is_left(server: Server, user_id: uuid.UUID) -> bool:
    """No record, no charge, nothing reserved, no claim, no lease that lives."""
    with server.services.database.session_scope(write=False) as session:
        rows = [
            session.scalar(select(table.id).where(table.user_id == user_id).limit(1))
            for table in (File, Pin, IdempotencyRecord)
        ]
        usage = session.get(UserUsage, user_id)
        counts = usage and (usage.file_count, usage.storage_bytes, usage.reserved_bytes)
        living = (Lease.user_id == user_id, Lease.lease_until > utc_now())
        return not any([*rows, any(counts or ()), session.scalar(select(Lease.id).where(*living))])


@pytest.mark.parametrize("end", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(("sort", "size"), SORTS, ids=lambda each: getattr(each, "__name__", each))
def test_an_upload_under_way(
    server: Server,
    alice: Account,
    sort: Callable[[httpx.Client, Slow], httpx.Response],
    size: int,
    end: Callable[[Server, Account, str], None],
) -> None:
    """Whichever way it comes, and its key ends."""
    limits = {"max_bytes": 10 * MIB} if size == MIB else {}
    wanted = {"name": "k", "scopes": ["files:write"], **limits}
    made = alice.client.post("/v1/keys", json=wanted).json()
    with server.client(made["key"]) as client:
        answer = meanwhile(
            server,
            alice,
            lambda slow: sort(client, slow),
            size,
            lambda: end(server, alice, made["id"]),
        )
    assert (answer.status_code, answer.json()["error"]["reason"]) == (401, "UNAUTHORIZED")
    until(lambda: nothing_is_left(server, uuid.UUID(alice.id)), "nothing is left")


def test_an_upload_under_way_under_a_login(server: Server, alice: Account) -> None:
    """A changed password ends it."""
    form = {"username": alice.username, "password": PASSWORD}
    with server.client() as nobody:
        token = nobody.post("/v1/auth/token", data=form).json()["access_token"]
    with server.client(token) as client:
        answer = meanwhile(
            server,
            alice,
            lambda slow: streamed(client, slow),
            MIB,
            lambda: change_password(server, alice, ""),
        )
    assert answer.status_code == 401
    until(lambda: nothing_is_left(server, uuid.UUID(alice.id)), "nothing is left")


def test_a_repeat_under_way(server: Server, alice: Account) -> None:
    """What was answered before is not told again."""
    made = alice.client.post("/v1/keys", json={"name": "k", "scopes": ["files:write"]}).json()
    with server.client(made["key"]) as client:
        once(client, Slow(b"data", go_on=gone_on())).raise_for_status()

    async def files() -> AsyncIterator[IncomingFile]:
        async def body() -> AsyncIterator[bytes]:
            yield b"data"

        yield IncomingFile("x", None, {}, body())

    async def run(services: Services) -> None:
        principal = services.authenticator.authenticate(made["key"])
        answered = services.idempotency.claim(principal, "PUT /v1/files", "once")
        assert isinstance(answered, Answered)
        revoke(server, alice, made["id"])
        with pytest.raises(Unauthorized):
            await services.uploads.store_once(
                principal, files(), Announced(4, 4), answered, lambda _: b""
            )

    beside(server.settings, run)


def gone_on() -> threading.Event:
    """For a body that doesn't stop."""
    event = threading.Event()
    event.set()
    return event


@pytest.mark.parametrize("end", WAYS, ids=lambda way: way.__name__)
def test_small_ones_that_go_together(
    server: Server, alice: Account, bob: Account, end: Callable[[Server, Account, str], None]
) -> None:
    """Only those whose keys have ended are refused, and none of them is pinned by itself for
    that."""
    made = alice.client.post("/v1/keys", json={"name": "k", "scopes": ["files:write"]}).json()
    asking = [*[bob.key] * AT_ONCE, made["key"], bob.key, made["key"], bob.key]

    async def run(services: Services) -> list[FileFacts | BaseException]:
        principals = [services.authenticator.authenticate(key) for key in asking]
        end(server, alice, made["id"])
        uploads = [upload(services, each, os.urandom(100)) for each in principals]
        return list(await asyncio.gather(*uploads, return_exceptions=True))

    outcomes = beside(server.settings, run)
    for key, outcome in zip(asking, outcomes, strict=True):
        wanted = FileFacts if key == bob.key else Unauthorized
        assert isinstance(outcome, wanted), outcome
    assert nothing_is_left(server, uuid.UUID(alice.id))


def test_a_car_under_way(server: Server, alice: Account) -> None:
    """Nothing of it becomes the user's, and the import waits for another one."""
    file = alice.upload(os.urandom(1000))
    car = alice.client.get(f"/ipfs/{file['cid']}?format=car").content
    carol = server.new_user()
    with carol.client:
        mine = carol.client.post("/v1/keys", json={"name": "k", "scopes": ["imports:write"]}).json()
        asked = carol.client.post("/v1/imports", json={"source": {"kind": "car"}}).json()
        with server.client(mine["key"]) as client:

            def send(slow: Slow) -> httpx.Response:
                slow.data = car
                return client.put(f"/v1/imports/{asked['id']}/car", content=iter(slow))

            answer = meanwhile(server, carol, send, 1, lambda: revoke(server, carol, mine["id"]))
        assert answer.status_code == 401
        assert carol.client.get("/v1/pins").json()["count"] == 0
        again = carol.client.put(f"/v1/imports/{asked['id']}/car", content=car)
        assert again.is_success, again.text


def test_a_pin_that_is_asked_for_slowly(server: Server, alice: Account) -> None:
    """Its key may have ended while its body came."""
    file = alice.upload(os.urandom(100))
    made = alice.client.post("/v1/keys", json={"name": "k", "scopes": ["pins:write"]}).json()
    with server.client(made["key"]) as client:

        def send(slow: Slow) -> httpx.Response:
            slow.data = b'{"cid": "%s"}' % str(file["cid"]).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(slow.data))}
            return client.post("/v1/pins", content=iter(slow), headers=headers)

        answer = meanwhile(
            server, alice, send, 1, lambda: revoke(server, alice, made["id"]), is_read_first=True
        )
    assert answer.status_code == 401
    assert alice.client.get("/v1/pins").json()["count"] == 0
