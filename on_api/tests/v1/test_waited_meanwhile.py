"""What waits for scrypt before its transaction: whatever ended or was taken back meanwhile is worth
nothing when its turn is over."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable

import httpx
import pytest

from on_api.core.crypto.kdf import Scrypt
from on_api.core.crypto.passwords import PasswordHasher
from on_api.core.models import User
from on_api.tests.conftest import FAST_SCRYPT, PASSWORD, Account, Server
from on_api.tests.deadline import until
from on_api.tests.gates import scrypt_held

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
