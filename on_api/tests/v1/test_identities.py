"""Encryption identities: several per user, one active, sealed at rest, given out only to whoever
knows the password."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from on_api.core.crypto.age import X25519Identity
from on_api.core.models import AuditEvent, File, IdempotencyRecord, Identity
from on_api.core.settings import Settings
from on_api.tests.conftest import PASSWORD, Account, DatabaseMaker, Server
from on_api.tests.testing.programs import needs, program
from on_api.tests.testing.shares import share
from on_api.tests.v1.test_private_files import content, export, log_in, opened, private


def test_the_first_is_made_when_needed(alice: Account) -> None:
    """By a private upload, not by a public one."""
    alice.upload(b"public")
    assert alice.client.get("/v1/users/me/identities").json() == {"items": []}
    private(alice, b"x")
    private(alice, b"y")
    (identity,) = alice.client.get("/v1/users/me/identities").json()["items"]
    assert identity["active"]
    assert identity["recipient"].startswith("age1")
    assert "identity" not in identity


def test_rotate_and_import(server: Server, alice: Account) -> None:
    """Each file opens with the identity that was active when it came; all are exported."""
    theirs = X25519Identity.generate()
    data = [os.urandom(100) for _ in range(4)]
    files = [private(alice, data[0])]
    assert alice.client.post("/v1/users/me/identity/rotate").status_code == 200
    files.append(private(alice, data[1]))
    body = {"identity": theirs.export(), "active": False}
    taken = alice.client.post("/v1/users/me/identity/import", json=body).json()
    assert (taken["recipient"], taken["active"]) == (str(theirs.recipient), False)
    files.append(private(alice, data[2]))
    again = alice.client.post("/v1/users/me/identity/import", json={"identity": theirs.export()})
    assert (again.json()["id"], again.json()["active"]) == (taken["id"], True)
    files.append(private(alice, data[3]))

    assert [content(alice, file).content for file in files] == data
    raws = [content(alice, file, "?raw=1").content for file in files]
    assert opened(raws[3], theirs.export()) == data[3]
    listed = alice.client.get("/v1/users/me/identities").json()["items"]
    assert [item["active"] for item in listed] == [True, False, False]
    given = export(server, alice)
    assert given["identity"] == theirs.export()
    assert given["recipient"] == str(theirs.recipient)
    identities = given["identities"]
    assert isinstance(identities, list)
    secrets = [item["identity"] for item in identities]
    assert [opened(raw, *secrets) for raw in raws] == data
    with server.services.database.session_scope(write=False) as session:
        actions = session.scalars(
            select(AuditEvent.action).where(
                AuditEvent.actor_id == uuid.UUID(alice.id), AuditEvent.target_type != "key"
            )
        ).all()
    for action in ("identity.rotate", "identity.import", "identity.export"):
        assert action in actions


@pytest.mark.parametrize("text", ["", "AGE-SECRET-KEY-1", "age1x", "x" * 201, "ä"])
def test_what_is_no_identity(alice: Account, text: str) -> None:
    """400, and what was sent is not repeated."""
    answer = alice.client.post("/v1/users/me/identity/import", json={"identity": text})
    assert answer.status_code == 400
    assert len(text) < 5 or text not in answer.text
    assert alice.client.get("/v1/users/me/identities").json()["items"] == []


def test_who_may_export(server: Server, alice: Account) -> None:
    """A login with the right password given again; never an API key. Nobody keeps the answer."""
    url, right = "/v1/users/me/identity/export", {"password": PASSWORD}
    assert alice.client.post(url, json=right).status_code == 403
    with log_in(server, alice) as client:
        assert client.post(url, json={"password": "another one"}).status_code == 401
        answer = client.post(url, json=right)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        again = client.post(url.replace("v1", "v2"), json=right)
        assert again.json() == answer.json()


def test_at_rest_they_are_sealed(server: Server, alice: Account) -> None:
    """To their row: exchanged rows open nothing."""
    private(alice, b"x")
    alice.client.post("/v1/users/me/identity/rotate")
    secrets = export(server, alice)["identities"]
    assert isinstance(secrets, list)
    database = server.services.database
    with database.session_scope() as session:
        rows = session.scalars(
            select(Identity).where(Identity.user_id == uuid.UUID(alice.id))
        ).all()
        for row in rows:
            for item in secrets:
                secret = X25519Identity.parse(item["identity"]).secret
                assert secret not in row.wrapped_secret
        rows[0].wrapped_secret, rows[1].wrapped_secret = (
            rows[1].wrapped_secret, rows[0].wrapped_secret,
        )  # fmt: skip
    answer = alice.client.put("/v1/files?name=x&visibility=private", content=b"x")
    assert (answer.status_code, answer.json()["error"]["reason"]) == (
        503,
        "MASTER_SECRET_UNAVAILABLE",
    )


@pytest.mark.parametrize("secret", ["another master secret, of another installation", None])
def test_another_master_secret(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings], secret: str | None
) -> None:
    """Wrong or missing: what needs it answers 503 and says why, what is public goes on, nothing is
    lost when the right one is back."""
    url = new_database()
    with Server(settings_for(url)) as right:
        alice = right.new_user()
        public, sealed = alice.upload(b"public"), private(alice, b"private")
        links = share(alice, public), share(alice, sealed)
        alice.client.close()
    other = None if secret is None else SecretStr(secret)
    login = {"username": alice.username, "password": PASSWORD}
    with Server(settings_for(url, secret_key=other)) as wrong, wrong.client() as client:
        assert client.get(f"/ipfs/{public['cid']}").content == b"public"
        assert client.get(links[0].path).content == b"public"
        # A token would be of a secret that the others do not have.
        for answer in client.post("/v1/auth/token", data=login), client.get(links[1].path):
            assert answer.status_code == 503
            assert answer.json()["error"]["reason"] == "MASTER_SECRET_UNAVAILABLE"
            assert "master secret" in answer.json()["error"]["details"]
        with wrong.client(alice.key) as refused:
            assert refused.get("/v1/files").status_code == 401
    with Server(settings_for(url)) as right, right.client(alice.key) as client:
        assert client.get(f"/v1/files/{sealed['id']}/content").content == b"private"
        assert client.get(links[1].path).content == b"private"
        with log_in(right, alice) as logged_in:
            assert logged_in.get("/v1/files").json()["count"] == 2


def test_they_go_with_their_account_at_once(server: Server, alice: Account, admin: Account) -> None:
    """In the answer's own transaction: not a second later, when the files are removed."""
    private(alice, os.urandom(100))
    with log_in(server, alice) as client:
        answer = client.post(
            "/v1/users/me/identity/export",
            json={"password": PASSWORD},
            headers={"Idempotency-Key": "x"},
        )
        assert answer.status_code == 200
    user_id = uuid.UUID(alice.id)
    seen: list[int] = []
    delete = server.services.users.delete

    def delete_and_look(session: object, *args: object) -> None:
        delete(session, *args)  # type: ignore[arg-type]
        session.flush()  # type: ignore[attr-defined]
        seen.extend(
            len(session.scalars(select(table).where(table.user_id == user_id)).all())  # type: ignore[attr-defined]
            for table in (Identity, IdempotencyRecord, File)
        )

    server.services.users.delete = delete_and_look  # type: ignore[method-assign,assignment]
    try:
        assert admin.client.delete(f"/v1/users/{alice.id}").status_code == 202
    finally:
        server.services.users.delete = delete  # type: ignore[method-assign]
    assert seen == [0, 0, 1]


@pytest.mark.clients
@needs("age")
def test_age_opens_what_was_exported(server: Server, alice: Account, tmp_path: Path) -> None:
    """Without on-api: the raw file, by the exported identity and by a recipient's."""
    data, theirs = os.urandom(200_000), X25519Identity.generate()
    file = private(alice, data, recipients=str(theirs.recipient))
    (tmp_path / "file.age").write_bytes(content(alice, file, "?raw=1").content)
    for secret in (str(export(server, alice)["identity"]), theirs.export()):
        (tmp_path / "key.txt").write_text(f"{secret}\n")
        done = subprocess.run(
            [
                program("age"),
                "--decrypt",
                "--identity",
                tmp_path / "key.txt",
                tmp_path / "file.age",
            ],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == data
