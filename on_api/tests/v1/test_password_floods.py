"""Passwords that many people send at once, and those that somebody guesses: nobody else waits, and
nobody is locked out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from on_api.core.models import PasswordThrottle
from on_api.core.server_settings import AuthSettings
from on_api.core.services.accounts.throttling import GUESSES_PER_PAUSE, PAUSE_OF_ALL
from on_api.core.settings import Settings
from on_api.tests.conftest import FAST_SCRYPT, PASSWORD, Account, DatabaseMaker, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.gates import scrypt_held
from on_api.tests.testing.plain_http import NO_TLS
from on_api.tests.testing.shares import share

PASSPHRASE = "a passphrase for one file"
MANY = 300
SOME = 60
"""More than there are threads."""
ALLOWED, PAUSE = 3, 1000

Attempt = Callable[[httpx.Client, str, Mapping[str, str]], httpx.Response]


@pytest.fixture
def flooded(new_database: DatabaseMaker, settings_for: Callable[..., Settings]) -> Iterator[Server]:
    """A server in whose queue 300 strangers have room, from one address."""
    auth = AuthSettings(
        scrypt_log_n=FAST_SCRYPT,
        passphrase_log_n=FAST_SCRYPT,
        scrypt_waiting=MANY,
        scrypt_per_address=0,
    )
    with Server(settings_for(new_database(), auth=auth)) as server:
        yield server


Send = Callable[[httpx.AsyncClient, int], Coroutine[Any, Any, httpx.Response]]


def kinds_of_scrypt(server: Server, alice: Account) -> dict[str, Send]:
    """A request for everything that takes scrypt; the number makes it another one."""
    admin = server.new_user(admin=True)
    sealed = alice.client.put(
        "/v1/files?name=sealed&visibility=private",
        content=b"sealed",
        headers={"On-Api-Passphrase": PASSPHRASE},
    ).json()
    public = alice.upload(b"public")
    with_password, without = share(alice, public, password="word"), share(alice, sealed)
    with server.client() as client:
        form = {"username": alice.username, "password": PASSWORD}
        token = client.post("/v1/auth/token", data=form).json()["access_token"]
    mine = {"Authorization": f"Bearer {alice.key}"}
    logged_in = {"Authorization": f"Bearer {token}"}
    admins = {"Authorization": f"Bearer {admin.key}"}

    def guess(number: int) -> dict[str, str]:
        return {"On-Api-Share-Password": f"w{number}", "On-Api-Passphrase": f"passphrase {number}"}

    def json(method: str, path: str, headers: Mapping[str, str], **body: Any) -> Send:
        return lambda client, number: client.request(
            method, path, json={**body, "password": f"a password {number}"}, headers=headers
        )

    return {
        "login": lambda client, number: client.post(
            "/v1/auth/token", data={"username": f"u{number}", "password": "x" * 12}
        ),
        "share's password": lambda client, number: client.get(
            with_password.path, headers=guess(number)
        ),
        "share's passphrase": lambda client, number: client.get(
            without.path, headers=guess(number)
        ),
        "share's form": lambda client, number: client.post(
            with_password.path, data={"password": f"w{number}"}
        ),
        "content": lambda client, number: client.get(
            f"/v1/files/{sealed['id']}/content", headers={**mine, **guess(number)}
        ),
        "private upload": lambda client, number: client.put(
            f"/v1/files?name={number}&visibility=private",
            content=b"x",
            headers={**mine, **guess(number)},
        ),
        "password change": lambda client, number: client.post(
            "/v1/users/me/password",
            json={"current_password": f"w{number}", "new_password": "a new password"},
            headers=mine,
        ),
        "new share": json("POST", "/v1/shares", mine, file_id=public["id"]),
        "new user": lambda client, number: client.post(
            "/v1/users", json={"username": f"v{number}", "password": "x" * 12}, headers=admins
        ),
        "changed user": json("PATCH", f"/v1/users/{alice.id}", admins),
        "identity export": json("POST", "/v1/users/me/identity/export", logged_in),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "login", "share's password", "share's passphrase", "share's form", "content",
        "private upload", "password change", "new share", "new user", "changed user",
        "identity export",
    ],
)  # fmt: skip
@pytest.mark.anyio
async def test_everybody_else_is_served_while_scrypt_is_held(flooded: Server, kind: str) -> None:
    """With very many of any kind in the queue: lists, uploads, readiness, the gateway hot or not,
    and what asks the database for an unknown link."""
    alice = flooded.new_user()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=flooded.url, timeout=60, limits=limits, verify=NO_TLS, trust_env=False
    ) as client:
        with alice.client as mine, flooded.client() as anonymous, ExitStack() as stack:
            send = kinds_of_scrypt(flooded, alice)[kind]
            kept = alice.upload(b"kept")
            gate = stack.enter_context(scrypt_held())
            many = MANY if kind == "login" else SOME
            flood = [asyncio.create_task(send(client, number)) for number in range(many)]

            def others() -> None:
                until(lambda: gate.held, "somebody is in scrypt", 60)
                assert mine.get("/v1/files?limit=1").status_code == 200
                assert mine.get("/v1/users/me/usage").status_code == 200
                assert mine.put("/v1/files?name=x", content=b"x").status_code == 201
                ready = anonymous.get("/readyz")
                assert ready.status_code == 200, ready.text
                for _ in range(2):
                    assert anonymous.get(f"/ipfs/{kept['cid']}").content == b"kept"
                assert mine.get(f"/v1/files/{kept['id']}/content").content == b"kept"
                assert anonymous.get("/s/" + "a" * 43).status_code == 404

            await asyncio.to_thread(others)
            # The worker has some for a moment, now and then; those who wait have none.
            in_use = flooded.services.database.connections_in_use
            await asyncio.to_thread(until, lambda: in_use() < 5, "no connection is held")
            gate.open()
            answers = await asyncio.gather(*flood)
            assert {answer.status_code for answer in answers} < {
                200, 201, 204, 401, 403, 429, 503,
            }  # fmt: skip
            for answer in answers:
                if answer.status_code in {429, 503}:
                    assert int(answer.headers["retry-after"]) > 0


def test_one_address_has_few_places(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """Its other logins are refused at once; another address's, and a user's who has logged in from
    the same one before, are served; and so is the refused one when it comes again."""
    auth = AuthSettings(scrypt_log_n=FAST_SCRYPT, scrypt_per_address=2)
    settings = settings_for(new_database(), auth=auth, trusted_proxies=["127.0.0.1"])
    with Server(settings) as server, ExitStack() as stack:
        alice, bob = server.new_user(), server.new_user()
        crowd, elsewhere = {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}

        def log_in(name: str, headers: Mapping[str, str], password: str = PASSWORD) -> int:
            form = {"username": name, "password": password}
            with server.client() as client:
                return client.post("/v1/auth/token", data=form, headers=headers).status_code

        assert log_in(alice.username, crowd) == 200
        gate = stack.enter_context(scrypt_held())
        threads = stack.enter_context(ThreadPoolExecutor(8))
        pool = server.services.scrypt_pool
        guesses = [threads.submit(log_in, f"u{n}", crowd, "guessed") for n in range(2)]
        until(lambda: pool.waiting == 2, "two are waiting")
        assert log_in(bob.username, crowd) == 429
        later = [threads.submit(log_in, bob.username, elsewhere)]
        later.append(threads.submit(log_in, alice.username, crowd))
        until(lambda: pool.waiting == 4, "the others have places")
        gate.open()
        assert [answer.result() for answer in guesses] == [401, 401]
        assert [answer.result() for answer in later] == [200, 200]
        assert log_in(bob.username, crowd) == 200


@dataclass
class Guarded:
    """Something that a password opens, and how to try one."""

    subject: str
    right: str
    attempt: Attempt


def guarded(alice: Account, kind: str) -> Guarded:
    """A login, a link with a password, or a private file by its link or its owner's key."""
    if kind == "login":

        def log_in(
            client: httpx.Client, password: str, headers: Mapping[str, str]
        ) -> httpx.Response:
            form = {"username": alice.username, "password": password}
            return client.post("/v1/auth/token", data=form, headers=headers)

        return Guarded(f"user:{alice.id}", PASSWORD, log_in)
    if kind == "share":
        link = share(alice, alice.upload(b"x"), password="word")
        return Guarded(
            f"share:{link.id}",
            "word",
            lambda client, password, headers: client.get(
                link.path, headers={**headers, "On-Api-Share-Password": password}
            ),
        )
    file = alice.client.put(
        "/v1/files?name=x&visibility=private",
        content=b"x",
        headers={"On-Api-Passphrase": PASSPHRASE},
    ).json()
    path, own = f"/v1/files/{file['id']}/content", {"Authorization": f"Bearer {alice.key}"}
    if kind == "shared file":
        path, own = share(alice, file).path, {}
    return Guarded(
        f"file:{file['id']}",
        PASSPHRASE,
        lambda client, password, headers: client.get(
            path, headers={**headers, **own, "On-Api-Passphrase": password}
        ),
    )


def at(address: str) -> dict[str, str]:
    """As a proxy tells who asks."""
    return {"X-Forwarded-For": address}


@contextmanager
def guessed(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings], kind: str
) -> Iterator[tuple[Server, Guarded, Callable[[str, str], httpx.Response]]]:
    """A server behind a proxy, and somebody's password."""
    auth = AuthSettings(
        scrypt_log_n=FAST_SCRYPT,
        passphrase_log_n=FAST_SCRYPT,
        failures_allowed=ALLOWED,
        failure_pause=PAUSE,
    )
    settings = settings_for(new_database(), auth=auth, trusted_proxies=["127.0.0.1"])
    with Server(settings) as server:
        alice = server.new_user()
        with alice.client, server.client() as client:
            what = guarded(alice, kind)
            yield server, what, lambda word, place: what.attempt(client, word, at(place))


KINDS = ["login", "share", "file", "shared file"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stranger_locks_out_nobody_else(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings], kind: str
) -> None:
    """Who guesses waits, with all of an IPv6 network; the right password works at once from
    elsewhere, and doesn't end the guesser's pause."""
    with guessed(new_database, settings_for, kind) as (_, what, attempt):
        for number in range(ALLOWED):
            guess = attempt(f"wrong word {number}", f"2001:db8::{number}")
            assert guess.status_code in {401, 403}
        for word in (what.right, "wrong once more"):
            refused = attempt(word, "2001:db8::ffff")
            assert refused.status_code == 429
            assert PAUSE - 60 < int(refused.headers["retry-after"]) <= PAUSE + 1
        assert attempt(what.right, "2001:db8:0:1::1").status_code == 200
        assert attempt(what.right, "192.0.2.7").status_code == 200
        assert attempt("wrong once more", "2001:db8::1").status_code == 429


@pytest.mark.parametrize("kind", KINDS)
def test_guesses_from_everywhere_are_slow_and_make_short_pauses(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings], kind: str
) -> None:
    """Very many addresses, few tries from each: no longer a pause for anybody else than seconds,
    and none for who was right there before."""
    with guessed(new_database, settings_for, kind) as (server, what, attempt):
        assert attempt(what.right, "192.0.2.7").status_code == 200
        enough = ALLOWED * GUESSES_PER_PAUSE
        with server.services.database.session_scope() as session:
            row = session.get_one(PasswordThrottle, (what.subject, ""))
            row.failures = enough - 1
        assert attempt("the last free guess", "203.0.113.1").status_code in {401, 403}
        refused = attempt("one guess more", "203.0.113.2")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) <= PAUSE_OF_ALL.total_seconds() + 1
        assert attempt(what.right, "192.0.2.7").status_code == 200
        until(lambda: attempt(what.right, "203.0.113.2").status_code == 200, "the pause is over")
