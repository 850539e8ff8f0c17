"""What waits for scrypt before its transaction: whatever ended or was taken back meanwhile is worth
nothing when its turn is over."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import select

from on_api.core.crypto.kdf import Scrypt
from on_api.core.crypto.passwords import PasswordHasher
from on_api.core.models import ApiKey, User
from on_api.core.models.database import utc_now
from on_api.core.models.key import TOKEN
from on_api.tests.conftest import FAST_SCRYPT, PASSWORD, Account, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.gates import scrypt_held
from on_api.tests.v1.test_private_files import log_in, with_passphrase

ANOTHER = "another horse battery"


def hashed(password: str, log_n: int = FAST_SCRYPT) -> str:
    """As it is stored."""
    return PasswordHasher(Scrypt(memory=2**28), log_n=log_n).hash(password)


def store(server: Server, account: Account, password_hash: str) -> None:
    """The hash as another process changes it, which ends all logins."""
    services = server.services
    with services.database.session_scope() as session:
        user = session.get_one(User, uuid.UUID(account.id), with_for_update=True)
        user.password_hash = password_hash
        services.keys.revoke_tokens(session, user.id)


def stored(server: Server, account: Account) -> str | None:
    """The hash as it is."""
    with server.services.database.session_scope(write=False) as session:
        return session.get_one(User, uuid.UUID(account.id)).password_hash


def meanwhile(send: Callable[[], httpx.Response], end: Callable[[], object]) -> httpx.Response:
    """The answer to a request if `end` happens while it is in scrypt for the first time."""
    answers: list[httpx.Response] = []
    with scrypt_held() as gate:
        sending = threading.Thread(target=lambda: answers.append(send()), daemon=True)
        sending.start()
        until(lambda: gate.held, "it is in scrypt")
        end()
    sending.join(60)
    return answers[0]


def token_for(client: httpx.Client, account: Account) -> httpx.Response:
    """A login with the first password."""
    form = {"username": account.username, "password": PASSWORD}
    return client.post("/v1/auth/token", data=form)


@pytest.mark.parametrize("cost", [FAST_SCRYPT, 8])
def test_a_login_by_a_password_that_is_replaced(
    server: Server, alice: Account, anonymous: httpx.Client, cost: int
) -> None:
    """No token by the old one; and a hash of lower cost isn't brought back by being renewed."""
    store(server, alice, hashed(PASSWORD, cost))
    new = hashed(ANOTHER, cost)
    answer = meanwhile(lambda: token_for(anonymous, alice), lambda: store(server, alice, new))
    assert answer.status_code == 401
    assert stored(server, alice) == new


def test_logins_whose_hash_is_renewed_at_once(
    server: Server, alice: Account, anonymous: httpx.Client
) -> None:
    """The same password, hashed anew by another login: it is right still."""
    new = hashed(PASSWORD)
    answer = meanwhile(lambda: token_for(anonymous, alice), lambda: store(server, alice, new))
    assert answer.status_code == 200
    assert stored(server, alice) == new


def test_a_change_by_a_password_that_is_replaced(server: Server, alice: Account) -> None:
    """The password that was set meanwhile stays."""
    new = hashed(ANOTHER)
    change = {"current_password": PASSWORD, "new_password": "what a thief wants"}
    answer = meanwhile(
        lambda: alice.client.post("/v1/users/me/password", json=change),
        lambda: store(server, alice, new),
    )
    assert answer.status_code == 401
    assert stored(server, alice) == new


def let_in(server: Server, account: Account) -> tuple[httpx.Client, uuid.UUID]:
    """A login, and the id of its token."""
    client = log_in(server, account)
    with server.services.database.session_scope(write=False) as session:
        mine = select(ApiKey.id).where(ApiKey.user_id == uuid.UUID(account.id))
        return client, session.scalars(mine.where(ApiKey.kind == TOKEN)).one()


def end(server: Server, key_id: uuid.UUID) -> None:
    """A key, which another process does, whose news don't come."""
    with server.services.database.session_scope() as session:
        session.get_one(ApiKey, key_id).revoked_at = utc_now()


def demote(server: Server, account: Account) -> None:
    """An administrator, in the same way; one more is left."""
    with server.services.database.session_scope() as session:
        session.get_one(User, uuid.UUID(account.id)).is_admin = False


KINDS = ["password change", "new user", "changed user", "new share", "identity export"]


def waiting(client: httpx.Client, alice: Account, kind: str) -> Callable[[], httpx.Response]:
    """A request that hashes or checks a password, by a client."""
    new_password = {"current_password": PASSWORD, "new_password": ANOTHER}
    new_user = {"username": f"n-{uuid.uuid4()}", "password": ANOTHER}
    method, path, body = {
        "password change": ("POST", "/v1/users/me/password", new_password),
        "new user": ("POST", "/v1/users", new_user),
        "changed user": ("PATCH", f"/v1/users/{alice.id}", {"password": ANOTHER}),
        "new share": ("POST", "/v1/shares", {"file_id": "", "password": ANOTHER}),
        "identity export": ("POST", "/v1/users/me/identity/export", {"password": PASSWORD}),
    }[kind]
    if kind == "new share":
        file = client.put("/v1/files?name=x", content=b"x").raise_for_status()
        body = {**body, "file_id": str(file.json()["id"])}
    return lambda: client.request(method, path, json=body)


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_ends(server: Server, admin: Account, alice: Account, kind: str) -> None:
    """Nothing is done for it any more; it would have been, had it not ended."""
    client, key_id = let_in(server, admin)
    with client:
        send = waiting(client, alice, kind)
        before = stored(server, admin), stored(server, alice)
        assert meanwhile(send, lambda: end(server, key_id)).status_code == 401
        assert (stored(server, admin), stored(server, alice)) == before
    with log_in(server, admin) as client:
        assert waiting(client, alice, kind)().is_success


@pytest.mark.parametrize("kind", ["new user", "changed user"])
def test_who_administers_no_more(server: Server, admin: Account, alice: Account, kind: str) -> None:
    """Neither makes accounts nor changes them."""
    before = stored(server, alice)
    send = waiting(admin.client, alice, kind)
    assert meanwhile(send, lambda: demote(server, admin)).status_code == 403
    assert stored(server, alice) == before


def test_a_download_that_waits(server: Server, alice: Account) -> None:
    """With a passphrase, by a key that ends: no byte is sent."""
    file = with_passphrase(alice, b"secret", ANOTHER).json()
    client, key_id = let_in(server, alice)

    def read() -> httpx.Response:
        headers = {"On-Api-Passphrase": ANOTHER}
        return client.get(f"/v1/files/{file['id']}/content", headers=headers)

    with client:
        assert read().content == b"secret"
        assert meanwhile(read, lambda: end(server, key_id)).status_code == 401
