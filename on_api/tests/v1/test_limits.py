"""Quotas, limits of keys and of files: exact, also when many come at once, and given back when
nothing was stored."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from on_api.core.errors import DatabaseUnavailable, Unauthorized
from on_api.core.models import Content, Holding, Lease, UserUsage
from on_api.core.models.database import utc_now
from on_api.core.setting_groups import FilesSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Server
from on_api.tests.testing.deadline import until

KB = 1000
MIB = 1024 * 1024


def set_quota(server: Server, account: Account, quota: int | None) -> None:
    """As an administrator would."""
    with server.services.database.session_scope() as session:
        from on_api.core.models import User

        session.get_one(User, uuid.UUID(account.id)).storage_quota = quota


def usage_of(server: Server, account: Account) -> tuple[int, int, int]:
    """Stored and reserved bytes by the counters, and the sum of the user's holdings."""
    with server.services.database.session_scope(write=False) as session:
        usage = session.get_one(UserUsage, uuid.UUID(account.id))
        held = session.query(Holding).filter(Holding.user_id == usage.user_id).all()
        return usage.storage_bytes, usage.reserved_bytes, sum(h.bytes for h in held)


def chunked(data: bytes) -> Iterator[bytes]:
    """A body whose length nobody announces."""
    for start in range(0, len(data), 65536):
        yield data[start : start + 65536]


@pytest.mark.parametrize("way", ["announced", "chunked", "multipart", "chunked multipart"])
def test_the_quota_holds_on_every_way(server: Server, alice: Account, way: str) -> None:
    """403 with its own reason; nothing recorded, nothing reserved; what fits still fits."""
    set_quota(server, alice, 300 * KB)
    too_much, fits = os.urandom(301 * KB), os.urandom(300 * KB)

    def send(data: bytes) -> httpx.Response:
        if "multipart" not in way:
            body = chunked(data) if way == "chunked" else data
            return alice.client.put("/v1/files?name=x", content=body)
        request = alice.client.build_request("POST", "/v1/files", files={"file": ("x", data)})
        if way == "multipart":
            return alice.client.send(request)
        form = {"Content-Type": request.headers["content-type"]}
        return alice.client.post("/v1/files", content=chunked(request.read()), headers=form)

    refused = send(too_much)
    assert refused.status_code == 403
    assert refused.json()["error"]["reason"] == "STORAGE_QUOTA_EXCEEDED"
    assert usage_of(server, alice) == (0, 0, 0)
    assert send(fits).status_code == 201
    assert usage_of(server, alice) == (300 * KB, 0, 300 * KB)
    assert send(b"x").status_code == 403
    [file] = alice.client.get("/v1/files").json()["items"]
    alice.client.delete(f"/v1/files/{file['id']}")
    assert send(fits).status_code == 201


def test_a_quota_is_refused_before_the_body_is_read(server: Server, alice: Account) -> None:
    """The answer comes although not a byte was sent."""
    import socket

    set_quota(server, alice, 10)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            f"PUT /v1/files?name=x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {alice.key}\r\n"
            "Content-Length: 1000000\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 403")


def test_the_quota_is_never_passed_by_many_at_once(server: Server, alice: Account) -> None:
    """Thirty uploads where ten fit: the sum of holdings stays below, the counters agree with it."""
    set_quota(server, alice, 1000 * KB)

    def send(number: int) -> int:
        data = os.urandom(100 * KB)
        body = chunked(data) if number % 2 else data
        return alice.client.put(f"/v1/files?name={number}", content=body).status_code

    with ThreadPoolExecutor(15) as threads:
        answers = list(threads.map(send, range(30)))
    assert set(answers) <= {201, 403}
    stored, reserved, held = usage_of(server, alice)
    assert stored == held == answers.count(201) * 100 * KB <= 1000 * KB
    assert reserved == 0
    # Slices of those who failed were in the way at most for a moment: now the rest fits.
    for number in range(10 - answers.count(201)):
        assert send(2 * number) == 201
    assert send(0) == 403


def test_what_is_held_already_is_not_charged_again(server: Server, alice: Account) -> None:
    """Once per user and content; and the charge is the DAG's size on the node."""
    data = os.urandom(2 * MIB + 1)
    cid = alice.upload(data)["cid"]
    alice.upload(data)
    with server.services.database.session_scope(write=False) as session:
        dag_size = session.get_one(Content, cid).dag_size
    assert dag_size > len(data)
    assert usage_of(server, alice) == (dag_size, 0, dag_size)


def test_max_uses_is_exact_under_concurrency(server: Server, alice: Account) -> None:
    """Five uses are five, whoever comes first."""
    key = alice.make_key("files:read", max_uses=5)
    with server.client(key) as client, ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda _: client.get("/v1/files").status_code, range(25)))
    assert sorted(answers) == [200] * 5 + [401] * 20
    # It is nobody's key any more, and found out to be without counting: in a stranger's thread.
    with pytest.raises(Unauthorized):
        server.services.authenticator.learn(key)
    assert not server.services.authenticator.was_valid(key)


def test_a_key_is_no_strangers_because_the_database_is_away(
    server: Server, alice: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the database can say that a key is not valid any more."""
    keys, key = server.services.authenticator, alice.make_key("files:read", max_uses=5)
    with server.client(key) as client:
        assert client.get("/v1/files").status_code == 200

    def unavailable(**_: object) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(server.services.database, "session_scope", unavailable)
    with pytest.raises(DatabaseUnavailable):
        keys.authenticate(key)
    assert keys.was_valid(key)


@pytest.mark.parametrize("way", ["put", "multipart"])
def test_max_bytes_is_exact_under_concurrency(server: Server, alice: Account, way: str) -> None:
    """Five files of 100 kB fit into 500 kB: exactly five are stored, also as forms, which are
    longer."""
    key = alice.make_key("files:write", max_bytes=500 * KB)

    def send(client: httpx.Client) -> httpx.Response:
        data = os.urandom(100 * KB)
        if way == "put":
            return client.put("/v1/files?name=x", content=data)
        return client.post("/v1/files", files={"file": ("x", data)})

    with server.client(key) as client:
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: send(client), range(16)))
        codes = [answer.status_code for answer in answers]
        assert set(codes) <= {201, 403}
        reasons = {a.json()["error"]["reason"] for a in answers if a.status_code == 403}
        assert reasons == {"KEY_LIMIT_REACHED"}
        while codes.count(201) < 5:
            assert send(client).status_code == 201
            codes.append(201)
        assert send(client).status_code == 403
    assert alice.client.get("/v1/files").json()["count"] == 5


def test_a_limited_key_gets_back_what_it_did_not_store(server: Server, alice: Account) -> None:
    """A failed upload costs none of the key's bytes."""
    key = alice.make_key("files:write", max_bytes=1000)
    with server.client(key) as client:
        form = {"Content-Type": "multipart/form-data; boundary=b"}
        broken = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nxx'
        assert client.post("/v1/files", content=broken, headers=form).status_code == 400
        assert client.put("/v1/files?name=x", content=os.urandom(1000)).status_code == 201
        assert client.put("/v1/files?name=x", content=b"").status_code == 201
        assert client.put("/v1/files?name=x", content=b"x").status_code == 403


def test_what_a_dead_lease_reserved_is_given_back(server: Server, alice: Account) -> None:
    """After a crash: quota and key are free again when the node holds nothing of it, and the lease
    is gone, so that a sleeper can't close it."""
    key = alice.client.post(
        "/v1/keys", json={"name": "k", "scopes": ["files:write"], "max_bytes": 500}
    ).json()
    lease = Lease(
        kind="upload",
        user_id=uuid.UUID(alice.id),
        key_id=uuid.UUID(key["id"]),
        token=uuid.uuid4(),
        lease_until=utc_now(),
        reserved_bytes=500,
    )
    database = server.services.database
    with database.session_scope() as session:
        session.add(lease)
        session.get_one(UserUsage, lease.user_id).reserved_bytes = 500
        from on_api.core.models import ApiKey

        session.get_one(ApiKey, lease.key_id).bytes_used = 500

    def is_gone() -> bool:
        with database.session_scope(write=False) as session:
            return session.get(Lease, lease.id) is None

    until(is_gone, "the dead lease is ended", 120)
    assert usage_of(server, alice) == (0, 0, 0)
    with server.client(key["key"]) as client:
        assert client.put("/v1/files?name=x", content=os.urandom(500)).status_code == 201


def test_a_file_over_the_limit(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """413 when announced and when it turns out; exactly the limit is fine."""
    settings = settings_for(new_database(), files=FilesSettings(max_size=MIB))
    with Server(settings) as server:
        account = server.new_user()
        with account.client as client:
            over, just = os.urandom(MIB + 1), os.urandom(MIB)
            assert client.put("/v1/files?name=x", content=over).status_code == 413
            assert client.put("/v1/files?name=x", content=chunked(over)).status_code == 413
            form = {"file": ("x", over)}
            answer = client.post("/v1/files", files=form)
            assert answer.status_code == 413
            assert answer.json()["error"]["reason"] == "PAYLOAD_TOO_LARGE"
            assert client.get("/v1/files").json()["count"] == 0
            assert client.put("/v1/files?name=x", content=chunked(just)).status_code == 201
            two = [("file", (str(n), os.urandom(MIB))) for n in range(2)]
            assert client.post("/v1/files", files=two).status_code == 201
