"""Passwords, tokens, keys: what lets somebody in, and what stops letting them in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from on_api.core.models import ApiKey, User
from on_api.core.models.database import utc_now
from on_api.core.services.accounts import authentication
from on_api.tests.conftest import PASSWORD, Account, Server

FORM = "/v1/auth/token"


def log_in(client: httpx.Client, username: str, password: str, **more: str) -> httpx.Response:
    """The OAuth2 password form."""
    return client.post(FORM, data={"username": username, "password": password, **more})


def test_password_login_gives_a_token(
    server: Server, alice: Account, anonymous: httpx.Client
) -> None:
    """The token speaks for the user; names ignore case; `scope` narrows it."""
    answer = log_in(anonymous, alice.username.upper(), PASSWORD)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert set(body) == {"access_token", "token_type", "expires_in"}
    assert (body["token_type"], body["expires_in"]) == ("bearer", 3600)
    with server.client(body["access_token"]) as client:
        assert client.get("/v1/users/me").json()["id"] == alice.id
        assert client.get("/v1/files").status_code == 200
    narrow = log_in(anonymous, alice.username, PASSWORD, scope="files:read").json()
    with server.client(narrow["access_token"]) as client:
        assert client.get("/v1/files").status_code == 200
        assert client.put("/v1/files?name=x", content=b"").status_code == 403
    assert log_in(anonymous, alice.username, PASSWORD, scope="files:eat").status_code == 400
    assert log_in(anonymous, alice.username, PASSWORD, scope="admin").status_code == 400


def test_wrong_password_and_unknown_user_answer_alike(
    alice: Account, anonymous: httpx.Client
) -> None:
    """Nobody learns from the answer who has an account."""
    wrong = log_in(anonymous, alice.username, "not the password")
    unknown = log_in(anonymous, "nobody-" + alice.username, "not the password")
    strange = log_in(anonymous, "no\x00body'; --", "not the password")
    assert wrong.status_code == unknown.status_code == strange.status_code == 401
    assert wrong.json() == unknown.json() == strange.json()
    assert wrong.headers["www-authenticate"] == "Bearer"


def test_too_many_wrong_passwords_make_a_pause(
    server: Server, alice: Account, anonymous: httpx.Client
) -> None:
    """After five, even the right password waits; the right one in time forgives the wrong ones."""
    for _ in range(4):
        assert log_in(anonymous, alice.username, "wrong").status_code == 401
    assert log_in(anonymous, alice.username, PASSWORD).status_code == 200
    for _ in range(5):
        assert log_in(anonymous, alice.username, "wrong").status_code == 401
    answer = log_in(anonymous, alice.username, PASSWORD)
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 61
    # Keys go on working: somebody else's guesses must not lock the owner out.
    assert alice.client.get("/v1/users/me").status_code == 200


def test_many_logins_at_once(alice: Account, anonymous: httpx.Client) -> None:
    """Each forgives what the others have counted; those over the limit wait, nobody stumbles."""
    with ThreadPoolExecutor(20) as threads:
        answers = threads.map(lambda _: log_in(anonymous, alice.username, PASSWORD), range(100))
        assert {answer.status_code for answer in answers} <= {200, 429}


def test_changing_the_password_ends_logins_not_keys(
    server: Server, alice: Account, anonymous: httpx.Client
) -> None:
    """The old password must be given; tokens end, keys stay."""
    token = log_in(anonymous, alice.username, PASSWORD).json()["access_token"]
    change = {"current_password": "not it", "new_password": "another password"}
    assert alice.client.post("/v1/users/me/password", json=change).status_code == 401
    change["current_password"] = PASSWORD
    assert alice.client.post("/v1/users/me/password", json=change).status_code == 204
    with server.client(token) as client:
        assert client.get("/v1/users/me").status_code == 401
    assert alice.client.get("/v1/users/me").status_code == 200
    assert log_in(anonymous, alice.username, PASSWORD).status_code == 401
    assert log_in(anonymous, alice.username, "another password").status_code == 200


def test_a_hash_of_lower_cost_is_renewed_at_login(
    server: Server, alice: Account, anonymous: httpx.Client
) -> None:
    """The cost is kept with the hash; a right password is hashed anew when today's is higher."""
    from on_api.core.crypto.kdf import Scrypt
    from on_api.core.crypto.passwords import PasswordHasher

    cheap = PasswordHasher(Scrypt(memory=2**28), log_n=8).hash(PASSWORD)
    with server.services.database.session_scope() as session:
        session.query(User).filter(User.username == alice.username).update({"password_hash": cheap})
    assert log_in(anonymous, alice.username, PASSWORD).status_code == 200
    with server.services.database.session_scope(write=False) as session:
        stored = session.query(User).filter(User.username == alice.username).one().password_hash
    assert stored is not None
    assert "ln=10," in stored
    assert log_in(anonymous, alice.username, PASSWORD).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer x",
        "Basic dXNlcjpwYXNz",
        "Bearer onapi_" + "a" * 49,
        "Bearer \xff\xfe",
        "Bearer " + "a" * 5000,
    ],
)
def test_what_is_no_key(anonymous: httpx.Client, header: str) -> None:
    """401 with the challenge, for anything that is no key of ours."""
    answer = anonymous.get("/v1/users/me", headers=[(b"Authorization", header.encode("latin-1"))])
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["reason"] == "UNAUTHORIZED"


def test_a_mistyped_key_asks_no_database(
    server: Server, alice: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checksum tells; a key of the right form that isn't ours does ask."""
    asked: list[object] = []
    real = server.services.database.session_scope

    def watching(*args: object, **kwargs: object) -> object:
        asked.append(args)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(server.services.database, "session_scope", watching)
    mistyped = alice.key[:-1] + ("a" if alice.key[-1] != "a" else "b")
    from on_api.core.errors import Unauthorized

    with pytest.raises(Unauthorized):
        server.services.authenticator.authenticate(mistyped)
    assert not asked
    from on_api.core.crypto.tokens import new_key

    with pytest.raises(Unauthorized):
        server.services.authenticator.authenticate(new_key())
    assert asked


def test_key_shape_and_secret_once(alice: Account) -> None:
    """The secret is in the answer to its creation and nowhere else."""
    answer = alice.client.post(
        "/v1/keys", json={"name": "läptop", "scopes": ["files:write", "files:read"]}
    )
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json()
    secret = made.pop("key")
    assert secret.startswith(made["prefix"])
    assert len(made["prefix"]) < 16 < len(secret)
    assert set(made) == {
        "id", "name", "prefix", "scopes", "expires_at", "max_uses", "max_bytes", "last_used_at",
        "created_at",
    }  # fmt: skip
    assert made["scopes"] == ["files:read", "files:write"]
    listed = alice.client.get("/v1/keys")
    assert secret not in listed.text
    assert made in listed.json()["items"]
    assert alice.client.get(f"/v1/keys/{made['id']}").json() == made


def test_only_the_hmac_is_at_rest(server: Server, alice: Account) -> None:
    """Neither the key nor a plain hash of it is in the table."""
    import hashlib

    with server.services.database.session_scope(write=False) as session:
        rows = session.query(ApiKey).all()
    for row in rows:
        assert row.digest != hashlib.sha256(alice.key.encode()).digest()
        assert alice.key not in repr(vars(row))


def test_revoked_keys_stop_at_once(server: Server, alice: Account, bob: Account) -> None:
    """In this process from the next request on; only by their owner."""
    made = alice.client.post("/v1/keys", json={"name": "k", "scopes": ["files:read"]}).json()
    with server.client(made["key"]) as client:
        assert client.get("/v1/files").status_code == 200
        assert bob.client.delete(f"/v1/keys/{made['id']}").status_code == 404
        assert client.get("/v1/files").status_code == 200
        assert alice.client.delete(f"/v1/keys/{made['id']}").status_code == 204
        assert client.get("/v1/files").status_code == 401
    assert alice.client.delete(f"/v1/keys/{made['id']}").status_code == 404
    assert made["id"] not in alice.client.get("/v1/keys").text


def test_expired_keys_stop(server: Server, alice: Account) -> None:
    """Also when they were known in memory before."""
    key = alice.make_key("files:read", expires_at=(utc_now() + timedelta(hours=1)).isoformat())
    with server.client(key) as client:
        assert client.get("/v1/files").status_code == 200
        with server.services.database.session_scope() as session:
            session.query(ApiKey).filter(ApiKey.prefix == key[:12]).update(
                {"expires_at": utc_now() - timedelta(seconds=1)}
            )
            server.services.invalidations.announce(session)
        assert client.get("/v1/files").status_code == 401
    past = {"name": "k", "scopes": ["files:read"], "expires_at": "2020-01-01T00:00:00Z"}
    assert alice.client.post("/v1/keys", json=past).status_code == 400


def test_no_key_is_believed_for_ever(
    server: Server, alice: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes the database from outside (a person with SQL) announces nothing: a key is looked
    at anew all the same."""
    monkeypatch.setattr(authentication, "REMEMBERED_SECONDS", 0.0)
    key = alice.make_key("files:read")
    with server.client(key) as client:
        assert client.get("/v1/files").status_code == 200
        with server.services.database.session_scope() as session:
            mine = session.query(ApiKey).filter(ApiKey.prefix == key[:12])
            mine.update({"revoked_at": utc_now()})
        assert client.get("/v1/files").status_code == 401


def test_a_key_never_exceeds_its_maker(server: Server, alice: Account) -> None:
    """Not in scopes, not in life, not in limits; and `admin` needs an administrator."""

    def make(client: httpx.Client, **body: object) -> int:
        return client.post("/v1/keys", json={"name": "k", **body}).status_code

    soon = datetime.now(UTC) + timedelta(hours=1)
    narrow = alice.make_key("keys:write", "files:read", expires_at=soon.isoformat())
    with server.client(narrow) as client:
        assert make(client, scopes=["files:write"], expires_at=soon.isoformat()) == 403
        assert make(client, scopes=["files:read"]) == 403
        later = (soon + timedelta(seconds=1)).isoformat()
        assert make(client, scopes=["files:read"], expires_at=later) == 403
        assert make(client, scopes=["files:read"], expires_at=soon.isoformat()) == 201
    assert make(alice.client, scopes=["admin"]) == 403
    assert make(alice.client, scopes=["keys:write"], max_uses=3) == 400
    assert make(alice.client, scopes=["files:read"], max_uses=0) == 400
    assert make(alice.client, scopes=[]) == 400
    assert make(alice.client, scopes=["files:eat"]) == 400
    assert make(alice.client, scopes=["files:read"], expires_at="2999-01-01T00:00:00") == 400


def test_last_used_is_kept_to_the_minute(alice: Account, server: Server) -> None:
    """Written at the first use, not again at once."""
    made = alice.client.post("/v1/keys", json={"name": "k", "scopes": ["files:read"]}).json()
    assert made["last_used_at"] is None
    with server.client(made["key"]) as client:
        client.get("/v1/files")
        first = alice.client.get(f"/v1/keys/{made['id']}").json()["last_used_at"]
        assert first is not None
        client.get("/v1/files")
    assert alice.client.get(f"/v1/keys/{made['id']}").json()["last_used_at"] == first
