"""The documents are the contract: committed, compared, and every operation in them tried by those
who may not."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from on_api.cli.openapi import documents
from on_api.core.models.revisions import PROJECT
from on_api.tests.conftest import PASSWORD, Account, Server

COMMITTED = PROJECT / "openapi"


@dataclass(frozen=True)
class Operation:
    """One operation of one version."""

    method: str
    path: str
    scopes: frozenset[str] | None
    """None: open to everyone."""
    body: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def operations() -> Iterator[Operation]:
    """Every operation of every version's document."""
    for text in documents().values():
        document = json.loads(text)
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                security = operation["security"]
                scopes = None
                if security and {} not in security:
                    scopes = frozenset(
                        s for need in security for wanted in need.values() for s in wanted
                    )
                yield Operation(method.upper(), path, scopes, operation)


OPERATIONS = list({str(op): op for op in operations()}.values())
"""What is outside the versions is in every document, and here once."""
GUARDED = [op for op in OPERATIONS if op.scopes is not None]
OPEN = {
    "POST /v1/auth/token",
    "POST /v1/auth/register",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    "GET /s/{token}",
    "HEAD /s/{token}",
    "POST /s/{token}",
    "GET /ipfs/{cid}",
    "HEAD /ipfs/{cid}",
    "GET /ipfs/{cid}/{path}",
    "HEAD /ipfs/{cid}/{path}",
}
ADMIN = frozenset({"admin"})
EVERY_SCOPE = {
    "files:read", "files:write", "pins:read", "pins:write", "shares:write", "traffic:read",
    "imports:write", "keys:write",
}  # fmt: skip

# A body that each operation takes, so that what is refused is the caller and not the body.
BODIES: dict[str, dict[str, Any]] = {
    "POST /keys": {"json": {"name": "k", "scopes": ["files:read"]}},
    "POST /files": {"files": {"file": ("a", b"x")}},
    "PUT /files": {"params": {"name": "a"}, "content": b"x"},
    "PATCH /files/{file_id}": {"json": {"name": "stolen"}},
    "POST /shares": {"json": {"file_id": str(uuid.uuid4())}},
    "POST /pins": {"json": {"cid": "bafkqaaa"}},
    "POST /pins/{requestid}": {"json": {"cid": "bafkqaaa"}},
    "POST /users": {"json": {"username": "intruder", "password": "12345678"}},
    "PATCH /users/{user_id}": {"json": {"active": False}},
    "PATCH /users/me": {"json": {"username": f"me-{uuid.uuid4().hex[:8]}"}},
    "POST /users/me/identity/import": {"json": {"identity": "AGE-SECRET-KEY-1"}},
    "POST /users/me/identity/export": {"json": {"password": PASSWORD}},
    "POST /users/me/password": {"json": {"current_password": PASSWORD, "new_password": "12345678"}},
}


def call(client: httpx.Client, operation: Operation, **ids: object) -> httpx.Response:
    """Call an operation with a body that it takes."""
    kind = f"{operation.method} {operation.path[3:]}"
    path = operation.path.format(**ids) if ids else operation.path
    return client.request(operation.method, path, **BODIES.get(kind, {}))


def some_ids(operation: Operation, **known: object) -> dict[str, object]:
    """Values for the path's parameters."""
    names = [p["name"] for p in operation.body.get("parameters", []) if p["in"] == "path"]
    return {name: known.get(name, uuid.uuid4()) for name in names}


@pytest.mark.parametrize("name", documents())
def test_the_committed_documents_are_what_the_code_says(name: str) -> None:
    """A change of the contract is seen in the diff. `make openapi` writes them anew."""
    assert (COMMITTED / name).read_text(encoding="utf-8") == documents()[name]


def test_open_operations_are_those_we_know() -> None:
    """Nothing becomes public by forgetting its scope."""
    assert {str(op).replace("/v2/", "/v1/") for op in OPERATIONS if op.scopes is None} == OPEN


@pytest.mark.parametrize("operation", GUARDED, ids=str)
def test_anonymous_is_401(anonymous: httpx.Client, operation: Operation) -> None:
    """With the challenge, in the version's own words."""
    answer = call(anonymous, operation, **some_ids(operation))
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    if operation.method == "HEAD":
        return
    if operation.path.startswith("/v2/") and not operation.path.startswith("/v2/pins"):
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "UNAUTHORIZED"
    else:
        assert answer.json()["error"]["reason"] == "UNAUTHORIZED"


@pytest.mark.parametrize("operation", [op for op in GUARDED if op.scopes], ids=str)
def test_wrong_scope_is_403(server: Server, alice: Account, operation: Operation) -> None:
    """With a key that has every scope but the one that is needed."""
    assert operation.scopes is not None
    key = alice.make_key(*(EVERY_SCOPE - operation.scopes))
    with server.client(key) as client:
        assert call(client, operation, **some_ids(operation)).status_code == 403


@pytest.mark.parametrize(
    "operation",
    [op for op in GUARDED if "{" in op.path and op.scopes != ADMIN],
    ids=str,
)
def test_someone_elses_is_404(alice: Account, bob: Account, operation: Operation) -> None:
    """As if it weren't there; and it is unharmed afterwards."""
    file = alice.upload(b"of alice", "alice.txt")
    key = alice.client.post("/v1/keys", json={"name": "k", "scopes": ["files:read"]}).json()
    pin = alice.client.post("/v1/pins", json={"cid": file["cid"]}).json()
    share = alice.client.post("/v1/shares", json={"file_id": file["id"]}).json()
    known = some_ids(
        operation,
        file_id=file["id"],
        key_id=key["id"],
        requestid=pin["requestid"],
        share_id=share["id"],
    )
    theirs = call(bob.client, operation, **known)
    nobodys = call(bob.client, operation, **some_ids(operation))
    assert theirs.status_code == nobodys.status_code == 404
    if operation.method != "HEAD":
        strip = ("instance",)
        one, other = (
            {k: v for k, v in r.json().items() if k not in strip} for r in (theirs, nobodys)
        )
        assert one == other
    assert alice.client.get(f"/v1/files/{file['id']}").json() == file
    assert alice.client.get(f"/v1/keys/{key['id']}").status_code == 200
    assert alice.client.get(f"/v1/shares/{share['id']}").status_code == 200


@pytest.mark.parametrize("operation", [op for op in GUARDED if op.scopes == ADMIN], ids=str)
def test_what_is_for_administrators_is_403_for_others(alice: Account, operation: Operation) -> None:
    """Whoever isn't one learns nothing of what is there."""
    assert call(alice.client, operation, **some_ids(operation)).status_code == 403


def refused(client: httpx.Client, operation: Operation, query: str) -> str:
    """What is said of an operation asked for with these options besides its own."""
    kind = f"{operation.method} {operation.path[3:]}"
    body = dict(BODIES.get(kind, {}))
    own = httpx.QueryParams(body.pop("params", {}))
    url = f"{operation.path.format(**some_ids(operation))}?{query}&{own}"
    answer = client.request(operation.method, url, **body)
    assert answer.status_code == 400, f"{operation} ?{query}"
    if operation.method == "HEAD":
        return query
    said = answer.json()
    return str(said["detail"] if "detail" in said else said["error"]["details"])


@pytest.mark.parametrize(
    "operation", [op for op in OPERATIONS if not op.path.startswith("/ipfs/")], ids=str
)
def test_unknown_and_repeated_options_are_400(
    server: Server, admin: Account, operation: Operation
) -> None:
    """With the option's name, whatever is there: one that is passed over makes another request
    than the one that was meant."""
    form = {"username": admin.username, "password": PASSWORD}
    login = admin.client.post("/v1/auth/token", data=form).json()["access_token"]
    with server.client(login) as client:
        refuse_options(client, operation)


def refuse_options(client: httpx.Client, operation: Operation) -> None:
    """Ask with options that the operation doesn't have, and with its own twice."""
    assert "visiblity" in refused(client, operation, "visiblity=private")
    assert "Limit" in refused(client, operation, "Limit=1")
    for parameter in operation.body.get("parameters", []):
        if parameter["in"] != "query":
            continue
        name = parameter["name"]
        described = parameter.get("schema", {})
        if described.get("type") != "array":
            assert name in refused(client, operation, f"{name}=1&{name}=1")
        assert name.upper() in refused(client, operation, f"{name.upper()}=1")


def test_fields_that_are_not_known_are_errors() -> None:
    """In every JSON body, at every depth: a typo is no silent loss. Only the Pinning Service API's
    own object may have fields of other services."""
    for text in documents().values():
        document = json.loads(text)
        schemas = document["components"]["schemas"]
        wanted = [
            content["schema"]
            for methods in document["paths"].values()
            for operation in methods.values()
            for kind, content in operation.get("requestBody", {}).get("content", {}).items()
            if kind == "application/json"
        ]
        seen: set[str] = set()
        while wanted:
            schema = wanted.pop()
            if isinstance(schema, dict):
                wanted += schema.values()
                name = str(schema.get("$ref", "")).rpartition("/")[2]
                if name and name not in seen:
                    seen.add(name)
                    wanted.append(schemas[name])
                if "properties" in schema and schema is not schemas["Pin"]:
                    assert schema.get("additionalProperties") is False, schema.get("title")
            elif isinstance(schema, list):
                wanted += schema
        assert {"Pin", "FileUpdate", "ImportCreate"} <= seen


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_the_documents_tell_the_whole(operation: Operation) -> None:
    """Each operation has a summary and a description, its errors have the version's body."""
    body = operation.body
    assert body.get("summary")
    assert body.get("description")
    problem = operation.path.startswith("/v2/") and not operation.path.startswith("/v2/pins")
    media_types = ["application/problem+json" if problem else "application/json"]
    if operation.path.startswith("/s/"):
        media_types.append("text/html")
    if operation.path.startswith("/ipfs/"):
        media_types = ["text/plain"]
    for status, response in body["responses"].items():
        assert response["description"], status
        if status.startswith(("4", "5")):
            assert list(response["content"]) == media_types
    assert "422" not in body["responses"]


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_every_parameter_is_described_with_an_example(operation: Operation) -> None:
    """In the schema: one of the parameter's own would be sent with whatever is tried in Swagger."""
    for parameter in operation.body.get("parameters", []):
        assert parameter.get("description"), parameter
        assert "example" not in parameter, parameter
        schema = parameter.get("schema") or parameter["content"]["application/json"]["schema"]
        assert schema.get("examples"), parameter


RATE_LIMITED = {
    "POST /v1/auth/token", "POST /v1/auth/register", "POST /v1/users", "PATCH /v1/users/{user_id}",
    "POST /v1/users/me/password", "POST /v1/users/me/identity/export", "GET /v1/users/me/export",
    "POST /v1/files", "PUT /v1/files", "GET /v1/files/{file_id}/content",
    "HEAD /v1/files/{file_id}/content", "POST /v1/shares", "GET /s/{token}", "HEAD /s/{token}",
    "POST /s/{token}", "GET /ipfs/{cid}", "HEAD /ipfs/{cid}", "GET /ipfs/{cid}/{path}",
    "HEAD /ipfs/{cid}/{path}",
}  # fmt: skip
"""Operations with a 429 of their own: passwords, passphrases, budgets, the gateway's limits."""


def test_what_may_be_refused_for_now_says_so() -> None:
    """429 for its own reason where it can happen, and nowhere else; for the operator's limit of
    requests everywhere but for watchers. A repeat of an Idempotency-Key 409. Who is told to come
    again is told when."""
    limited = set()
    for operation in OPERATIONS:
        responses = operation.body["responses"]
        is_for_watchers = "health" in operation.body["tags"]
        assert ("429" in responses) is not is_for_watchers, operation
        reasons = responses.get("429", {}).get("description", "").split(" · ")
        own = [reason for reason in reasons if not reason.startswith("`RATE_LIMITED`")]
        if own != [""] and own:
            limited.add(str(operation).replace("/v2/", "/v1/"))
        if "429" in responses:
            assert {"RateLimit", "RateLimit-Policy"} <= set(responses["429"]["headers"]), operation
        is_gateway = "gateway" in operation.body["tags"]
        assert is_gateway or is_for_watchers or len(own) < len(reasons), operation
        names = {parameter["name"] for parameter in operation.body.get("parameters", [])}
        if "Idempotency-Key" in names:
            assert "IN_PROGRESS" in responses["409"]["description"], operation
        for status in {"429", "503"} & set(responses):
            assert "Retry-After" in responses[status]["headers"], (operation, status)
    assert limited == RATE_LIMITED


def test_every_header_is_described_with_an_example() -> None:
    """Each answer names its headers; each header says what it is."""
    for text in documents().values():
        document = json.loads(text)
        for header in document["components"]["headers"].values():
            assert header["description"]
            assert "example" in header
        for methods in document["paths"].values():
            for operation in methods.values():
                for response in operation["responses"].values():
                    assert "X-Request-Id" in response["headers"]


def test_bounds_are_the_numbers_that_they_are() -> None:
    """2^62, not the float beside it, which clients write as another number."""
    for text in documents().values():
        quota = json.loads(text)["components"]["schemas"]["UserCreate"]["properties"]
        assert quota["storage_quota"]["anyOf"][0]["maximum"] == 2**62
        assert "e+" not in text


def test_every_field_is_described() -> None:
    """A developer in Swagger reads what each field means."""
    for text in documents().values():
        schemas = json.loads(text)["components"]["schemas"]
        for name, schema in schemas.items():
            for field, described in schema.get("properties", {}).items():
                # The login form is OAuth2's own, made by FastAPI.
                said = {"description", "$ref"} & set(described)
                assert said or name == "LoginForm", (name, field)


def test_operation_ids_are_unique() -> None:
    """Generated clients need that, within each document."""
    for text in documents().values():
        ids = [
            operation["operationId"]
            for methods in json.loads(text)["paths"].values()
            for operation in methods.values()
        ]
        assert len(ids) == len(set(ids))


def test_unknown_paths_and_methods(anonymous: httpx.Client) -> None:
    """404 and 405 in each version's words."""
    assert anonymous.get("/v1/nothing").json()["error"]["reason"] == "NOT_FOUND"
    assert anonymous.get("/v2/nothing").json()["code"] == "NOT_FOUND"
    assert anonymous.get("/nothing").json()["error"]["reason"] == "NOT_FOUND"
    answer = anonymous.put("/v1/keys")
    assert answer.status_code == 405
    assert answer.json()["error"]["reason"] == "METHOD_NOT_ALLOWED"
    assert answer.headers["allow"] == "GET, HEAD, POST"
    # Not what there is for an account of that name.
    me = anonymous.delete("/v1/users/me")
    assert (me.status_code, me.headers["allow"]) == (405, "GET, HEAD, PATCH")
    assert anonymous.delete("/v2/files").headers["allow"] == "GET, HEAD, POST, PUT"
    assert anonymous.post(f"/v1/files/{uuid.uuid4()}/content").headers["allow"] == "GET, HEAD"
