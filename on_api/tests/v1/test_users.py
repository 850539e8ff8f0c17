"""Accounts: made, changed, stopped, deleted; and the log of who did it."""

from __future__ import annotations

import os
import uuid

import httpx

from on_api.core.models import Content, File, User
from on_api.tests.conftest import PASSWORD, Account, Server
from on_api.tests.testing.deadline import until


def test_an_administrator_makes_and_changes_accounts(admin: Account, server: Server) -> None:
    """The whole life of an account, as its administrator sees it."""
    name = f"New.User-{uuid.uuid4().hex[:8]}"
    body = {"username": name, "password": PASSWORD, "storage_quota": 1000}
    made = admin.client.post("/v1/users", json=body)
    assert made.status_code == 201, made.text
    user = made.json()
    assert set(user) == {
        "id", "username", "is_admin", "active", "storage_quota", "egress_budget", "created_at",
    }  # fmt: skip
    assert (user["username"], user["is_admin"], user["active"]) == (name.lower(), False, True)
    assert admin.client.post("/v1/users", json=body).status_code == 409
    url = f"/v1/users/{user['id']}"
    assert admin.client.get(url).json() == user
    changed = admin.client.patch(url, json={"storage_quota": None, "egress_budget": 5}).json()
    assert (changed["storage_quota"], changed["egress_budget"]) == (None, 5)
    assert changed["active"] is True
    listed = admin.client.get("/v1/users", params={"limit": 1000}).json()
    assert user["id"] in [item["id"] for item in listed["items"]]
    assert "password" not in made.text
    for wrong in (
        {"active": None},
        {"storage_quota": -1},
        {"storage_quota": 2**70},
        {"password": "short"},
        {"username": "x"},
    ):
        assert admin.client.patch(url, json=wrong).status_code == 400, wrong
    for wrong in ({"username": ""}, {"username": "a b"}, {"username": "é"}, {"username": "x" * 65}):
        assert admin.client.post("/v1/users", json={**body, **wrong}).status_code == 400


def test_deactivation_stops_keys_and_logins_and_can_be_undone(
    admin: Account, alice: Account, anonymous: httpx.Client
) -> None:
    """At once, for keys known in memory too."""
    form = {"username": alice.username, "password": PASSWORD}
    assert alice.client.get("/v1/users/me").status_code == 200
    token = anonymous.post("/v1/auth/token", data=form).json()["access_token"]
    url = f"/v1/users/{alice.id}"
    assert admin.client.patch(url, json={"active": False}).json()["active"] is False
    assert alice.client.get("/v1/users/me").status_code == 401
    assert anonymous.post("/v1/auth/token", data=form).status_code == 401
    admin.client.patch(url, json={"active": True})
    assert alice.client.get("/v1/users/me").status_code == 200
    bearer = {"Authorization": f"Bearer {token}"}
    assert anonymous.get("/v1/users/me", headers=bearer).status_code == 401


def test_the_admin_scope_is_checked_against_the_user_each_time(
    admin: Account, server: Server
) -> None:
    """A key made while its owner was an administrator is worth nothing afterwards."""
    other = server.new_user(admin=True)
    with other.client:
        assert other.client.get("/v1/users").status_code == 200
        admin.client.patch(f"/v1/users/{other.id}", json={"is_admin": False})
        assert other.client.get("/v1/users").status_code == 403
        assert other.client.get("/v1/users/me").status_code == 200


def test_a_deleted_user_is_gone_at_once_and_their_files_soon(
    admin: Account, alice: Account, bob: Account, server: Server, anonymous: httpx.Client
) -> None:
    """Keys, login and record end with the answer; what others hold stays; the name is free."""
    shared, own = os.urandom(100), os.urandom(100)
    bobs = bob.upload(shared)
    alice.upload(shared)
    only_alices = alice.upload(own)["cid"]
    answer = admin.client.delete(f"/v1/users/{alice.id}")
    assert (answer.status_code, answer.json()) == (202, None)
    assert alice.client.get("/v1/users/me").status_code == 401
    assert admin.client.get(f"/v1/users/{alice.id}").status_code == 404
    assert admin.client.delete(f"/v1/users/{alice.id}").status_code == 404
    form = {"username": alice.username, "password": PASSWORD}
    assert anonymous.post("/v1/auth/token", data=form).status_code == 401
    again = admin.client.post("/v1/users", json=form)
    assert again.status_code == 201

    def all_removed() -> bool:
        with server.services.database.session_scope(write=False) as session:
            owner = uuid.UUID(alice.id)
            return (
                session.get(User, owner) is None
                and session.query(File).filter(File.user_id == owner).count() == 0
            )

    until(all_removed, "the housekeeper removes the account")
    with server.services.database.session_scope(write=False) as session:
        assert session.get_one(Content, only_alices).unreferenced_at is not None
        assert session.get_one(Content, bobs["cid"]).unreferenced_at is None
    assert bob.client.get(f"/v1/files/{bobs['id']}/content").content == shared


def test_somebody_is_always_left_to_administer(server: Server, admin: Account) -> None:
    """The last active administrator can't be removed, demoted or stopped."""
    admins = [
        item
        for item in admin.client.get("/v1/users", params={"limit": 1000}).json()["items"]
        if item["is_admin"] and item["active"] and item["id"] != admin.id
    ]
    for item in admins:
        changed = admin.client.patch(f"/v1/users/{item['id']}", json={"active": False})
        assert changed.status_code == 200
    try:
        url = f"/v1/users/{admin.id}"
        assert admin.client.patch(url, json={"is_admin": False}).status_code == 409
        assert admin.client.patch(url, json={"active": False}).status_code == 409
        assert admin.client.delete(url).status_code == 409
        assert admin.client.get("/v1/users/me").json()["is_admin"] is True
    finally:
        for item in admins:
            admin.client.patch(f"/v1/users/{item['id']}", json={"active": True})


def test_me(alice: Account, bob: Account) -> None:
    """Everyone sees and renames themselves, to a name that is free."""
    me = alice.client.get("/v1/users/me").json()
    assert me["username"] == alice.username
    assert alice.client.patch("/v1/users/me", json={"username": bob.username}).status_code == 409
    name = f"renamed-{uuid.uuid4().hex[:8]}"
    assert alice.client.patch("/v1/users/me", json={"username": name}).json()["username"] == name
    assert alice.client.patch("/v1/users/me", json={"is_admin": True}).status_code == 400
    usage = alice.client.get("/v1/users/me/usage").json()
    assert set(usage) == {"storage", "egress"}
    assert usage["storage"] == {"bytes": 0, "quota": None}
    assert usage["egress"]["period_end"].endswith("-01T00:00:00.000000Z")


def test_admins_see_any_users_files(admin: Account, alice: Account) -> None:
    """The list, and only by the operation for it: the file's own address stays its owner's."""
    file = alice.upload(b"mine", "mine.txt")
    listed = admin.client.get(f"/v1/users/{alice.id}/files").json()
    assert [item["id"] for item in listed["items"]] == [file["id"]]
    assert admin.client.get(f"/v1/files/{file['id']}").status_code == 404
    assert admin.client.get(f"/v1/users/{uuid.uuid4()}/files").status_code == 404


def test_the_audit_log_says_who_did_what(
    admin: Account, alice: Account, anonymous: httpx.Client
) -> None:
    """Logins, failed ones, keys and changes; newest first; no secrets."""
    anonymous.post("/v1/auth/token", data={"username": alice.username, "password": "wrong one"})
    made = alice.client.post("/v1/keys", json={"name": "k", "scopes": ["files:read"]}).json()
    alice.client.delete(f"/v1/keys/{made['id']}")
    admin.client.patch(f"/v1/users/{alice.id}", json={"password": "a new password"})
    log = admin.client.get("/v1/audit", params={"limit": 1000})
    lines = log.json()["items"]
    of_key = [line["action"] for line in lines if line["target_id"] == made["id"]]
    assert of_key == ["key.revoke", "key.create"]
    of_alice = {line["action"] for line in lines if line["target_id"] == alice.id}
    assert {"user.create", "user.change", "login.failed"} <= of_alice
    changed = next(line for line in lines if line["action"] == "user.change")
    assert changed["actor_id"] == admin.id
    assert changed["client"] == "127.0.0.1"
    assert "a new password" not in log.text
    assert made["key"] not in log.text
    by_alice = admin.client.get("/v1/audit", params={"actor_id": alice.id}).json()
    assert {line["actor_id"] for line in by_alice["items"]} == {alice.id}


def test_registration_is_closed_unless_opened(anonymous: httpx.Client) -> None:
    """403 with a reason."""
    body = {"username": "me", "password": PASSWORD}
    answer = anonymous.post("/v1/auth/register", json=body)
    assert answer.status_code == 403


def test_no_name_is_in_the_way_of_a_deletion(admin: Account, alice: Account, bob: Account) -> None:
    """Whatever somebody else calls themselves."""
    for name in (f"deleted-{alice.id}", f"deleted/{alice.id}"):
        bob.client.patch("/v1/users/me", json={"username": name})
    assert bob.client.get("/v1/users/me").json()["username"] == f"deleted-{alice.id}"
    assert admin.client.delete(f"/v1/users/{alice.id}").status_code == 202
