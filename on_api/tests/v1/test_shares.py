"""Shares as their owners see them: made, listed, revoked, gone with what they lead to."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select

from on_api.core.models import Event, IdempotencyRecord, Share
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.shares import in_an_hour, share


def test_the_url_is_shown_once(alice: Account) -> None:
    """Every field that clients rely on; the token is in the first answer only."""
    file = alice.upload(b"shared")
    body = {"file_id": file["id"], "expires_at": "2999-01-01T00:00:00+01:00", "max_downloads": 3}
    answer = alice.client.post("/v1/shares", json={**body, "password": "päß wort"})
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json()
    url = made.pop("url")
    assert url.startswith("http://localhost:8000/s/" + made["prefix"])
    assert alice.client.get(f"/v1/shares/{made['id']}").json() == made
    assert alice.client.get("/v1/shares").json() == {"count": 1, "items": [made]}
    assert made.pop("id")
    assert len(made.pop("prefix")) == 6
    assert made.pop("created_at").endswith("Z")
    assert made == {
        "file_id": file["id"],
        "expires_at": "2998-12-31T23:00:00.000000Z",
        "max_downloads": 3,
        "downloads": 0,
        "has_password": True,
    }


def test_links_have_the_public_url(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """Behind a proxy people see another address than ours."""
    settings = settings_for(new_database(), public_url="https://files.example/")
    with Server(settings) as server:
        account = server.new_user()
        with account.client as client:
            file = account.upload(b"x")
            made = client.post("/v1/shares", json={"file_id": file["id"]}).json()
            assert made["url"].startswith("https://files.example/s/")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"expires_at": "2020-01-01T00:00:00Z"}, "in the future"),
        ({"expires_at": "2999-01-01T00:00:00"}, "offset"),
        ({"expires_at": "tomorrow"}, "date and time"),
        ({"max_downloads": 0}, "max_downloads"),
        ({"max_downloads": -1}, "max_downloads"),
        ({"max_downloads": 10**9 + 1}, "max_downloads"),
        ({"max_downloads": 1.5}, "max_downloads"),
        ({"password": ""}, "password"),
        ({"password": "x" * 257}, "password"),
        ({"password": "a\nb"}, "control"),
        ({"password": " padded "}, "space"),
        ({"file_id": "x"}, "file_id"),
        ({"token": "my own"}, "unknown field"),
    ],
)
def test_what_no_link_can_be(alice: Account, wrong: dict[str, Any], reason: str) -> None:
    """400 with the reason and no echo; nothing is made."""
    file = alice.upload(b"x")
    answer = alice.client.post("/v1/shares", json={"file_id": file["id"], **wrong})
    assert answer.status_code == 400, answer.text
    assert reason in answer.json()["error"]["details"]
    assert "padded" not in answer.text
    assert alice.client.get("/v1/shares").json()["count"] == 0


def test_only_ones_own_files(alice: Account, bob: Account) -> None:
    """Someone else's file is as one that never was, for making a link and for listing them."""
    file = alice.upload(b"of alice")
    share(alice, file)
    answers = [
        bob.client.post("/v1/shares", json={"file_id": file_id})
        for file_id in (file["id"], str(uuid.uuid4()))
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json() == answers[1].json()
    listed = bob.client.get("/v1/shares", params={"file_id": str(file["id"])})
    assert listed.json() == {"count": 0, "items": []}


def test_lists(alice: Account) -> None:
    """Newest first, narrowed to a file, the same in both versions, without what is revoked."""
    files = [alice.upload(bytes([n]), f"{n}") for n in range(2)]
    links = [share(alice, files[n % 2]) for n in range(5)]
    of_one = {"file_id": str(files[0]["id"])}
    everything = alice.client.get("/v1/shares").json()
    assert [item["id"] for item in everything["items"]] == [link.id for link in reversed(links)]
    narrowed = alice.client.get("/v1/shares", params=of_one).json()
    assert narrowed == {"count": 3, "items": everything["items"][::2]}
    first = alice.client.get("/v2/shares", params={**of_one, "limit": 2}).json()
    cursor = {"cursor": first["next_cursor"]}
    rest = alice.client.get("/v2/shares", params={**of_one, "limit": 2, **cursor}).json()
    assert first["items"] + rest["items"] == narrowed["items"]
    assert rest["next_cursor"] is None
    assert alice.client.get("/v2/shares", params=cursor).status_code == 400
    assert alice.client.delete(f"/v2/shares/{links[4].id}").status_code == 204
    assert alice.client.get("/v1/shares", params=of_one).json()["count"] == 2
    for method in ("GET", "DELETE"):
        assert alice.client.request(method, f"/v1/shares/{links[4].id}").status_code == 404
    assert alice.client.get("/v1/shares", params={"file_id": "x"}).status_code == 400


def test_who_did_it_is_written_down(server: Server, admin: Account) -> None:
    """In the audit log and the outbox, without the secret."""
    file = admin.upload(b"x")
    link = share(admin, file, password="a secret word", expires_at=in_an_hour())
    admin.client.delete(f"/v1/shares/{link.id}")
    lines = admin.client.get("/v1/audit", params={"actor_id": admin.id}).json()["items"]
    told = [(line["action"], line["target_id"], line["details"]) for line in lines]
    named = {"file_id": file["id"]}
    assert told == [("share.revoke", link.id, named), ("share.create", link.id, named)]
    with server.services.database.session_scope(write=False) as session:
        mine = select(Event).where(Event.subject_id == uuid.UUID(link.id)).order_by(Event.id)
        written = [(event.kind, event.data) for event in session.scalars(mine)]
    assert written == [("share.created", named), ("share.revoked", named)]


def test_a_repeated_request_makes_one_link(server: Server, alice: Account) -> None:
    """The same URL comes again; it is kept sealed, and only the hash stays otherwise."""
    file = alice.upload(b"x")
    header = {"Idempotency-Key": str(uuid.uuid4())}
    body = {"file_id": file["id"], "password": "a secret word"}
    first, again = (alice.client.post("/v1/shares", json=body, headers=header) for _ in range(2))
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert alice.client.get("/v1/shares").json()["count"] == 1
    token = first.json()["url"].rpartition("/")[2]
    with server.services.database.session_scope(write=False) as session:
        kept = [record.answer or b"" for record in session.scalars(select(IdempotencyRecord))]
        row = session.get_one(Share, uuid.UUID(first.json()["id"]))
        stored = repr([getattr(row, column.key) for column in Share.__table__.columns])
    assert not any(token.encode() in answer for answer in kept)
    assert token not in stored
    assert "a secret word" not in stored


def test_a_files_end_is_its_links_end(server: Server, alice: Account, bob: Account) -> None:
    """Their rows go with the file, and with the account; nobody else's do."""
    doomed, kept = alice.upload(b"doomed"), alice.upload(b"kept")
    gone, stays = share(alice, doomed), share(alice, kept)
    of_bob = share(bob, bob.upload(b"doomed"))

    def left(*links: str) -> int:
        with server.services.database.session_scope(write=False) as session:
            ids = [uuid.UUID(link) for link in links]
            found = session.scalar(select(func.count()).where(Share.id.in_(ids)))
            return found or 0

    assert alice.client.delete(f"/v1/files/{doomed['id']}").status_code == 204
    assert left(gone.id) == 0
    assert left(stays.id, of_bob.id) == 2
    administrator = server.new_user(admin=True)
    with administrator.client as client:
        assert client.delete(f"/v1/users/{alice.id}").status_code == 202
    until(lambda: left(stays.id) == 0, "the account's links are gone")
    assert left(of_bob.id) == 1
