"""Which tries of a password count as wrong ones, for whom, and what is written of them."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import httpx
from sqlalchemy import func, select

from on_api.core.models import AuditEvent, File, PasswordThrottle
from on_api.core.settings import Settings
from on_api.tests.conftest import PASSWORD, Account, DatabaseMaker, Server
from on_api.tests.v1.test_auth import log_in
from on_api.tests.v1.test_private_files import with_passphrase

MANY = 7
"""More than are allowed without a pause."""
WORD = "a passphrase for one file"


def read(account: Account, file: str, passphrase: str = WORD) -> httpx.Response:
    """A private file's content."""
    headers = {"On-Api-Passphrase": passphrase}
    return account.client.get(f"/v1/files/{file}/content", headers=headers)


def failures_of(server: Server, subject: str) -> set[int]:
    """What is counted for it, here and everywhere."""
    counted = select(PasswordThrottle.failures).where(PasswordThrottle.subject == subject)
    with server.services.database.session_scope(write=False) as session:
        return set(session.scalars(counted))


def rename(account: Account, name: str) -> None:
    """By its owner, whose key goes on working."""
    account.client.patch("/v1/users/me", json={"username": name}).raise_for_status()


def test_another_name_ends_no_pause(
    admin: Account, alice: Account, anonymous: httpx.Client
) -> None:
    """It is the account's; who takes the old name has none."""
    for _ in range(MANY):
        log_in(anonymous, alice.username, "wrong")
    name = f"renamed-{uuid.uuid4().hex}"
    rename(alice, name)
    assert log_in(anonymous, name, PASSWORD).status_code == 429
    new = {"username": alice.username, "password": PASSWORD}
    admin.client.post("/v1/users", json=new).raise_for_status()
    assert log_in(anonymous, alice.username, PASSWORD).status_code == 200


def test_names_that_nobody_has_are_paused_alike(anonymous: httpx.Client) -> None:
    """Or the pause would tell who has an account."""
    name = f"nobody-{uuid.uuid4().hex}"
    answers = [log_in(anonymous, name, "wrong").status_code for _ in range(MANY)]
    assert answers == [401] * 5 + [429] * 2


def test_a_right_password_never_counts(
    server: Server, alice: Account, anonymous: httpx.Client
) -> None:
    """Also where no token comes of it."""
    for _ in range(MANY):
        assert log_in(anonymous, alice.username, PASSWORD, scope="admin").status_code == 400
    assert failures_of(server, f"user:{alice.id}") == {0}


def test_what_fails_without_a_verdict_does_not_count(server: Server, alice: Account) -> None:
    """A damaged file, here, whose passphrase may be right; it doesn't make the network known."""
    file = str(with_passphrase(alice, b"secret", WORD).json()["id"])
    assert read(alice, file, "a wrong passphrase").status_code == 403
    database = server.services.database
    with database.session_scope() as session:
        row = session.get_one(File, uuid.UUID(file))
        whole = row.sealed_start
        assert whole is not None
        row.sealed_start = whole.replace(b"--- ", b"--- A", 1)
    for _ in range(MANY):
        assert read(alice, file).status_code == 502
    subject = f"file:{file}"
    assert failures_of(server, subject) == {1}
    with database.session_scope() as session:
        session.get_one(File, uuid.UUID(file)).sealed_start = whole
        counted = select(PasswordThrottle.right_at).where(PasswordThrottle.subject == subject)
        assert set(session.scalars(counted)) == {None}
    assert read(alice, file).content == b"secret"
    assert 0 in failures_of(server, subject)


def test_a_pause_that_a_failure_began_ends_with_it(server: Server, alice: Account) -> None:
    """The last try that is allowed, and then some, each without a verdict."""
    file = str(with_passphrase(alice, b"secret", WORD).json()["id"])
    for _ in range(4):
        assert read(alice, file, "a wrong passphrase").status_code == 403
    with server.services.database.session_scope() as session:
        row = session.get_one(File, uuid.UUID(file))
        whole, row.sealed_start = row.sealed_start, b"damaged"
    for _ in range(MANY):
        assert read(alice, file).status_code == 502
    with server.services.database.session_scope() as session:
        session.get_one(File, uuid.UUID(file)).sealed_start = whole
    assert read(alice, file, "a wrong passphrase").status_code == 403
    assert read(alice, file).status_code == 429


def test_names_that_nobody_has_fill_no_log(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """Wrong passwords of accounts are written down."""
    with Server(settings_for(new_database())) as server:
        alice = server.new_user()
        with alice.client, server.client() as anonymous:

            def lines() -> int:
                failed = select(func.count()).where(AuditEvent.action == "login.failed")
                with server.services.database.session_scope(write=False) as session:
                    return session.scalar(failed) or 0

            for number in range(MANY):
                assert log_in(anonymous, f"nobody-{number}", "wrong").status_code == 401
            assert lines() == 0
            assert log_in(anonymous, alice.username, "wrong").status_code == 401
            assert lines() == 1
