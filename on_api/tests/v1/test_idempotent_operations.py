"""Every operation that takes an `Idempotency-Key`, from the documents: sent twice it is done once,
and what was done and what was answered are one commit."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, event

from on_api.cli.openapi import documents
from on_api.core.crypto.age import X25519Identity
from on_api.tests.conftest import PASSWORD, Account, Server
from on_api.tests.testing.dags import block_of, car_of


def operations() -> Iterator[tuple[str, str]]:
    """Method and path of every operation that takes a key."""
    for text in documents().values():
        for path, methods in json.loads(text)["paths"].items():
            for method, operation in methods.items():
                if any(p["name"] == "Idempotency-Key" for p in operation.get("parameters", ())):
                    yield method.upper(), path


OPERATIONS = list(operations())


@dataclass
class Case:
    """A request that does something, and where that is seen."""

    writes: str
    """How the statement begins that does it."""
    request: dict[str, Any] = field(default_factory=dict)
    other: dict[str, Any] | None = None
    """Changes that make it another request, where there can be one."""
    ids: dict[str, str] = field(default_factory=dict)
    key: str | None = None
    """Of who sends it, where that is no usual one."""
    between: Callable[[], object] = lambda: None
    """Happens after the first time; whoever did it again would undo it."""


def case_of(operation: str, server: Server, somebody: Account) -> Case:
    """What to send, everything that it needs being there."""
    client = somebody.client
    name = uuid.uuid4().hex
    body: dict[str, Any]
    form: dict[str, Any]
    sent: dict[str, Any]

    def an_import(kind: str = "pinning_api") -> str:
        source: dict[str, object] = {"kind": kind}
        if kind == "pinning_api":
            source |= {"endpoint": "https://pins.example", "token": "x"}
        return str(client.post("/v1/imports", json={"source": source}).json()["id"])

    match operation:
        case "POST /users":
            body = {"username": name, "password": PASSWORD}
            return Case("INSERT INTO users", {"json": body}, {"json": {**body, "is_admin": True}})
        case "POST /users/me/password":
            body = {"current_password": PASSWORD, "new_password": PASSWORD + "!"}
            return Case("UPDATE users", {"json": body}, {"json": {**body, "new_password": name}})
        case "POST /users/me/identity/rotate":
            return Case("INSERT INTO identities")
        case "POST /users/me/identity/import":
            body = {"identity": X25519Identity.generate().export()}
            return Case("INSERT INTO identities", {"json": body}, {"json": {**body, "active": 1}})
        case "POST /users/me/identity/export":
            login = {"username": somebody.username, "password": PASSWORD}
            token = client.post("/v1/auth/token", data=login).json()["access_token"]
            client.post("/v1/users/me/identity/rotate")
            return Case(
                "INSERT INTO audit_events",
                {"json": {"password": PASSWORD}},
                {"json": {"password": "another one"}},
                key=token,
            )
        case "POST /keys":
            body = {"name": name, "scopes": ["files:read"]}
            return Case("INSERT INTO keys", {"json": body}, {"json": {**body, "name": "other"}})
        case "POST /files":
            form = {"files": {"file": (name, b"x")}}
            return Case("INSERT INTO files", form, {"files": {"file": (name, b"y")}})
        case "PUT /files":
            sent = {"params": {"name": name}, "content": name}
            return Case("INSERT INTO files", sent, {"content": "other"})
        case "POST /shares":
            body = {"file_id": somebody.upload(name.encode())["id"]}
            return Case("INSERT INTO shares", {"json": body}, {"json": {**body, "password": name}})
        case "POST /pins":
            return Case("INSERT INTO pins", {"json": {"cid": "bafkqaaa"}}, {"json": {"cid": name}})
        case "POST /pins/{requestid}":
            pin = client.post("/v1/pins", json={"cid": "bafkqaaa"}).json()["requestid"]
            body = {"cid": "bafkqaaa", "name": name}
            changed = {"json": {**body, "name": "other"}}
            return Case("INSERT INTO pins", {"json": body}, changed, {"requestid": pin})
        case "POST /imports":
            body = {"source": {"kind": "cids", "text": "bafkqaaa"}}
            changed = {"json": {"source": {"kind": "cids", "text": "bafkqaea"}}}
            return Case("INSERT INTO imports", {"json": body}, changed)
        case "POST /imports/{import_id}/start":
            it = an_import()
            return Case(
                "UPDATE imports",
                ids={"import_id": it},
                between=lambda: client.post(f"/v1/imports/{it}/pause"),
            )
        case "POST /imports/{import_id}/pause":
            it = an_import()
            client.post(f"/v1/imports/{it}/start")
            return Case(
                "UPDATE imports",
                ids={"import_id": it},
                between=lambda: client.post(f"/v1/imports/{it}/start"),
            )
        case "POST /imports/{import_id}/cancel":
            return Case("UPDATE imports", ids={"import_id": an_import()})
        case "PUT /imports/{import_id}/car":
            cid, block = block_of(name.encode())
            sent = {"params": {"name": name}, "content": car_of(cid, {cid: block})}
            changed = {"params": {"name": "other"}}
            return Case("INSERT INTO pins", sent, changed, {"import_id": an_import("car")})
    raise LookupError(f"{operation}: a new operation needs a body here")


class Commits:
    """What each transaction that was committed has written."""

    def __init__(self) -> None:
        self.writing: list[list[str]] = []
        self._open: dict[int, list[str]] = {}

    def executed(self, connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        """One statement."""
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            self._open.setdefault(id(connection), []).append(statement)

    def committed(self, connection: Connection) -> None:
        """The end of a transaction."""
        self.writing.append(self._open.pop(id(connection), []))

    def rolled_back(self, connection: Connection) -> None:
        """The end of one that was never there."""
        self._open.pop(id(connection), None)


@contextmanager
def watching(server: Server) -> Iterator[Commits]:
    """Every commit of a server's."""
    commits, engine = Commits(), server.services.database.engine
    listeners: dict[str, Callable[..., None]] = {
        "before_cursor_execute": commits.executed,
        "commit": commits.committed,
        "rollback": commits.rolled_back,
    }
    for name, listener in listeners.items():
        event.listen(engine, name, listener)
    try:
        yield commits
    finally:
        for name, listener in listeners.items():
            event.remove(engine, name, listener)


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda part: part)
def test_done_once_and_answered_alike(resting: Server, method: str, path: str) -> None:
    """What is done and its answer are in one commit, so that nothing can end between them. A repeat
    does nothing and gets the same answer; another request with the same key is a conflict."""
    somebody = resting.new_user(admin=True)
    with somebody.client:
        case = case_of(f"{method} {path[3:]}", resting, somebody)
        with resting.client(case.key or somebody.key) as client:
            do_twice(resting, client, case, method, path.format(**case.ids))


def do_twice(resting: Server, client: httpx.Client, case: Case, method: str, url: str) -> None:
    """Once, and again."""
    headers = {"Idempotency-Key": uuid.uuid4().hex}

    def send(**changes: Any) -> httpx.Response:
        return client.request(method, url, headers=headers, **{**case.request, **changes})

    with watching(resting) as commits:
        first = send()
    assert first.status_code < 300, first.text
    doing = [c for c in commits.writing if any(s.startswith(case.writes) for s in c)]
    answering = [
        c for c in commits.writing if any(s.startswith("UPDATE idempotency_records") for s in c)
    ]
    assert len(doing) == 1
    assert answering == doing
    case.between()
    with watching(resting) as commits:
        again = send()
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    if first.content:
        assert again.headers["content-type"] == first.headers["content-type"]
    assert "idempotent-replayed" not in first.headers
    assert not [c for c in commits.writing if any(s.startswith(case.writes) for s in c)]
    if case.other is not None:
        other = send(**case.other)
        assert (other.status_code, reason_of(other)) == (409, "CONFLICT")


def reason_of(answer: httpx.Response) -> str:
    """The reason of an error, in either version's words."""
    body = answer.json()
    return str(body["code"] if "code" in body else body["error"]["reason"])


def test_every_one_of_them_tells_of_it() -> None:
    """Both conflicts are in the documents, and no POST with a key of on-api's is left out."""
    for version, text in documents().items():
        for path, methods in json.loads(text)["paths"].items():
            for method, operation in methods.items():
                if operation["security"] and method == "post":
                    assert (method.upper(), path) in OPERATIONS, version
                if (method.upper(), path) in OPERATIONS:
                    told = operation["responses"]["409"]["description"]
                    assert "`IN_PROGRESS`" in told, path
                    assert "`CONFLICT`" in told, path


@pytest.mark.parametrize("word", [b"", b"a b", "é".encode(), b"x" * 256])
@pytest.mark.parametrize("path", ["/v1/users/me/identity/rotate", "/v1/keys", "/v2/pins"])
def test_keys_that_are_none(carol: Account, path: str, word: bytes) -> None:
    """400, before anything is done; also for several, of which one would be ignored."""
    before = carol.client.get("/v1/users/me/identities").json()
    for headers in ([(b"Idempotency-Key", word)], [(b"Idempotency-Key", b"a")] * 2):
        body = {"name": "k", "scopes": ["files:read"], "cid": "bafkqaaa"}
        answer = carol.client.post(path, json=body, headers=headers)
        assert answer.status_code == 400
    assert carol.client.get("/v1/users/me/identities").json() == before


def test_a_word_belongs_to_one_user_key_and_path(
    resting: Server, carol: Account, dave: Account
) -> None:
    """Without a body too: each of these is done, none is told of another's answer."""
    headers, path = {"Idempotency-Key": "the-same"}, "/users/me/identity/rotate"
    with resting.client(carol.make_key("keys:write")) as other:
        answers = [
            client.post(f"/{version}{path}", headers=headers)
            for client in (carol.client, dave.client, other)
            for version in ("v1", "v2")
        ]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == len(answers)


def test_what_failed_is_not_remembered(carol: Account) -> None:
    """A request without a body that was refused may succeed later under the same key."""
    source = {"kind": "pinning_api", "endpoint": "https://pins.example", "token": "x"}
    url = f"/v1/imports/{carol.client.post('/v1/imports', json={'source': source}).json()['id']}"
    headers = {"Idempotency-Key": "pause"}
    assert carol.client.post(f"{url}/pause", headers=headers).status_code == 409
    carol.client.post(f"{url}/start")
    answer = carol.client.post(f"{url}/pause", headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (202, "paused")
