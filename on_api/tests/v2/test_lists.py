"""Version 2's lists: by cursor, complete, stable while others write, refused when tampered with."""

from __future__ import annotations

import base64

import pytest

from on_api.tests.conftest import Account, Server


def walk(account: Account, path: str, **query: str | int) -> list[dict[str, object]]:
    """Every item of a list, page by page."""
    items: list[dict[str, object]] = []
    cursor = None
    while True:
        page = account.client.get(path, params={**query, **({"cursor": cursor} if cursor else {})})
        assert page.status_code == 200, page.text
        body = page.json()
        assert set(body) == {"items", "next_cursor"}
        items += body["items"]
        cursor = body["next_cursor"]
        if cursor is None:
            return items


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 1000])
def test_every_file_once_in_order(alice: Account, limit: int) -> None:
    """Whatever the page's size, up to and over the number of files."""
    for number in range(7):
        alice.upload(f"{number}".encode(), f"{number}.txt")
    names = [item["name"] for item in walk(alice, "/v2/files", limit=limit)]
    assert names == [f"{n}.txt" for n in range(6, -1, -1)]


def test_a_walk_is_not_disturbed_by_those_who_write(alice: Account) -> None:
    """New files don't shift the pages; a deleted position still leads on."""
    made = [alice.upload(bytes([n]), f"{n}") for n in range(6)]
    first = alice.client.get("/v2/files", params={"limit": 2}).json()
    alice.upload(b"new", "new")
    alice.client.delete(f"/v2/files/{made[4]['id']}")
    rest = alice.client.get("/v2/files", params={"limit": 9, "cursor": first["next_cursor"]}).json()
    assert [item["name"] for item in rest["items"]] == ["3", "2", "1", "0"]
    assert rest["next_cursor"] is None


def test_a_cursor_is_of_one_list(server: Server, alice: Account, bob: Account) -> None:
    """Not of another filter or resource; not changed; and it shows nobody another's files."""
    for account in (alice, bob):
        for number in range(3):
            account.upload(f"{account.id}{number}".encode(), f"{account.username} {number}")
    cursor = alice.client.get("/v2/files", params={"limit": 1}).json()["next_cursor"]
    raw = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    raw[-5] ^= 1
    tampered = base64.urlsafe_b64encode(raw).decode()
    for path, query in (
        ("/v2/files", {"cursor": tampered}),
        ("/v2/files", {"cursor": "nonsense"}),
        ("/v2/files", {"cursor": "é"}),
        ("/v2/files", {"cursor": "x" * 600}),
        ("/v2/files", {"cursor": ""}),
        ("/v2/files", {"cursor": cursor, "name_contains": "1"}),
        ("/v2/keys", {"cursor": cursor}),
    ):
        answer = alice.client.get(path, params=query)
        assert answer.status_code == 400, (path, query)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "BAD_REQUEST"
    seen = bob.client.get("/v2/files", params={"cursor": cursor}).json()["items"]
    assert all(str(item["name"]).startswith(bob.username) for item in seen)


def test_filters_are_v1s(alice: Account) -> None:
    """The same filters give the same files in both versions."""
    for number in range(5):
        alice.upload(b"same" if number % 2 else b"other", f"n{number}", meta=f'{{"n": {number}}}')
    cid = alice.client.get("/v1/files", params={"name": "n1"}).json()["items"][0]["cid"]
    for query in ({"cid": cid}, {"name_contains": "N"}, {"meta": '{"n": 3}'}):
        by_time = alice.client.get("/v1/files", params=query).json()["items"]
        assert walk(alice, "/v2/files", limit=2, **query) == by_time


def test_users_keys_and_audit_too(admin: Account) -> None:
    """Every list of version 2 is of this kind."""
    for _ in range(3):
        admin.make_key("files:read")
    assert len(walk(admin, "/v2/keys", limit=2)) == 4
    users = [user["id"] for user in walk(admin, "/v2/users", limit=2)]
    assert users[0] == admin.id
    assert len(set(users)) == len(users)
    lines = walk(admin, "/v2/audit", limit=3, actor_id=admin.id)
    assert [line["action"] for line in lines] == ["key.create"] * 3
    assert walk(admin, f"/v2/users/{admin.id}/files", limit=1) == []


def test_errors_are_problems(alice: Account) -> None:
    """RFC 9457, with v1's reason as code and the request's id."""
    answer = alice.client.get("/v2/files/00000000-0000-0000-0000-000000000000")
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem.pop("instance").endswith(answer.headers["x-request-id"])
    assert problem == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "The resource was not found.",
        "code": "NOT_FOUND",
    }
