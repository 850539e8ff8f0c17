"""`Idempotency-Key`: done once, answered alike, whoever repeats it, however the body is cut;
never a second time."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import pytest

from on_api.core.models import File, IdempotencyRecord
from on_api.core.models.database import utc_now
from on_api.core.services.accounts.access import Principal
from on_api.core.services.accounts.idempotency import Answered, IdempotencyClaim, forget_old_answers
from on_api.tests.conftest import Account, Server
from on_api.tests.testing.deadline import until


def key() -> dict[str, str]:
    """A header with a new key."""
    return {"Idempotency-Key": str(uuid.uuid4())}


def files_of(account: Account) -> int:
    """How many there are."""
    return int(account.client.get("/v1/files").json()["count"])


def chunked(data: bytes, size: int) -> Iterator[bytes]:
    """The body in pieces, its length unannounced."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def test_an_upload_is_done_once(alice: Account) -> None:
    """Raw, chunked otherwise, the same answer; another body under the same key is a conflict."""
    header, data = key(), os.urandom(3_000_000)
    first = alice.client.put("/v1/files?name=x", content=data, headers=header)
    assert first.status_code == 201
    again = alice.client.put("/v1/files?name=x", content=chunked(data, 70_001), headers=header)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    for name, body in (("x", data[:-1]), ("y", data)):
        other = alice.client.put(f"/v1/files?name={name}", content=body, headers=header)
        assert other.status_code == 409
        assert other.json()["error"]["reason"] == "CONFLICT"
    assert files_of(alice) == 1


def test_a_form_with_another_boundary_is_the_same_request(alice: Account) -> None:
    """Two files in one form; the boundary differs in each repeat, the order of files matters."""
    header = key()
    parts = [("file", (f"{n}.txt", f"content {n}".encode(), "text/plain")) for n in range(2)]
    first, again = (
        alice.client.post("/v1/files", data={"meta": "{}"}, files=parts, headers=header)
        for _ in range(2)
    )
    assert first.request.headers["content-type"] != again.request.headers["content-type"]
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert len(first.json()["items"]) == 2
    turned = alice.client.post("/v1/files", files=parts[::-1], headers=header)
    assert turned.status_code == 409
    assert files_of(alice) == 2


def test_a_secret_is_answered_again_and_kept_sealed(server: Server, alice: Account) -> None:
    """The key made by a repeated request is the same one; at rest it can't be read."""
    header, body = key(), {"name": "k", "scopes": ["files:read"]}
    first, again = (alice.client.post("/v1/keys", json=body, headers=header) for _ in range(2))
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert alice.client.get("/v1/keys").json()["count"] == 2
    with server.services.database.session_scope(write=False) as session:
        for record in session.query(IdempotencyRecord).all():
            assert first.json()["key"].encode() not in (record.answer or b"")
    different = alice.client.post("/v1/keys", json={**body, "name": "other"}, headers=header)
    assert different.status_code == 409
    new = alice.client.post("/v1/keys", json=body, headers=key())
    assert new.json()["key"] != first.json()["key"]


def test_keys_are_of_one_user_key_and_route(server: Server, alice: Account, bob: Account) -> None:
    """The same word means nothing to others."""
    header = key()
    assert alice.client.put("/v1/files?name=x", content=b"a", headers=header).status_code == 201
    assert bob.client.put("/v1/files?name=x", content=b"b", headers=header).status_code == 201
    form = {"file": ("x", b"c")}
    assert alice.client.post("/v1/files", files=form, headers=header).status_code == 201
    assert alice.client.put("/v2/files?name=x", content=b"d", headers=header).status_code == 201
    with server.client(alice.make_key("files:write")) as other:
        assert other.put("/v1/files?name=x", content=b"e", headers=header).status_code == 201


def test_failures_are_not_remembered(alice: Account) -> None:
    """What was wrong may be put right under the same key."""
    header = key()
    assert alice.client.put("/v1/files", content=b"x", headers=header).status_code == 400
    assert alice.client.put("/v1/files?name=x", content=b"x", headers=header).status_code == 201
    header = key()
    body: dict[str, object] = {"name": "k", "scopes": ["admin"]}
    assert alice.client.post("/v1/keys", json=body, headers=header).status_code == 403
    body["scopes"] = ["files:read"]
    assert alice.client.post("/v1/keys", json=body, headers=header).status_code == 201


@pytest.mark.parametrize("word", ["", "a b", "é", "x" * 256])
def test_keys_that_are_none(alice: Account, word: str) -> None:
    """400, before anything is done."""
    headers = [(b"Idempotency-Key", word.encode("latin-1"))]
    answer = alice.client.put("/v1/files?name=x", content=b"x", headers=headers)
    assert answer.status_code == 400
    assert files_of(alice) == 0


def test_a_repeat_while_it_runs(server: Server, alice: Account) -> None:
    """409 IN_PROGRESS with Retry-After, before its body is read; afterwards the recorded answer."""
    header, begun, go_on = key(), threading.Event(), threading.Event()

    def slow() -> Iterator[bytes]:
        yield b"begun "
        begun.set()
        go_on.wait(30)
        yield b"and ended"

    def send() -> httpx.Response:
        return alice.client.put("/v1/files?name=x", content=slow(), headers=header)

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(send)
        assert begun.wait(10)
        until(lambda: is_claimed(server, header), "the first has claimed the key")
        repeat = alice.client.put("/v1/files?name=x", content=b"begun and ended", headers=header)
        assert repeat.status_code == 409
        assert repeat.json()["error"]["reason"] == "IN_PROGRESS"
        assert int(repeat.headers["retry-after"]) > 0
        go_on.set()
        assert first.result().status_code == 201
    again = alice.client.put("/v1/files?name=x", content=b"begun and ended", headers=header)
    assert again.json() == first.result().json()


def is_claimed(server: Server, header: dict[str, str]) -> bool:
    """Whether somebody has claimed the key."""
    with server.services.database.session_scope(write=False) as session:
        records = session.query(IdempotencyRecord).filter_by(key=header["Idempotency-Key"])
        return records.count() == 1


def test_many_at_once_are_one(alice: Account) -> None:
    """Twenty of the same: one is done, the others get its answer or are told that it runs."""
    header = key()

    def send(_: int) -> httpx.Response:
        return alice.client.post(
            "/v1/files", files={"file": ("x", b"the same" * 1000)}, headers=header
        )

    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(send, range(20)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 201}) == 1
    assert files_of(alice) == 1


def test_many_at_once_that_fail(alice: Account) -> None:
    """Each gives the claim back while others ask for it: no one stumbles over that."""
    header = key()

    def send(_: int) -> int:
        nothing: dict[str, object] = {"name": "x", "scopes": []}
        return alice.client.post("/v1/keys", json=nothing, headers=header).status_code

    with ThreadPoolExecutor(20) as threads:
        assert set(threads.map(send, range(200))) <= {400, 409}


def test_the_claim_of_a_crash_is_free_after_its_lease(server: Server, alice: Account) -> None:
    """And the one who was only asleep can record nothing under it any more."""
    service, database = server.services.idempotency, server.services.database
    principal: Principal = server.services.authenticator.authenticate(alice.key)
    crashed = service.claim(principal, "PUT /v1/files", "word")
    assert isinstance(crashed, IdempotencyClaim)
    header = {"Idempotency-Key": "word"}
    assert alice.client.put("/v1/files?name=x", content=b"x", headers=header).status_code == 409
    with database.session_scope() as session:
        session.get_one(IdempotencyRecord, crashed.id).lease_until = utc_now() - timedelta(1)
    done = alice.client.put("/v1/files?name=x", content=b"x", headers=header)
    assert done.status_code == 201
    from on_api.core.errors import ServiceUnavailable

    with pytest.raises(ServiceUnavailable), database.session_scope() as session:
        service.finish(session, crashed, Answered(bytes(32), 201, b"{}"))
    again = alice.client.put("/v1/files?name=x", content=b"x", headers=header)
    assert again.json() == done.json()
    with database.session_scope(write=False) as session:
        assert session.query(File).filter(File.user_id == principal.user_id).count() == 1


def test_a_request_of_more_than_a_day(server: Server, alice: Account) -> None:
    """While it goes on its claim stays, and its answer is kept from its end on; a crash's goes."""
    service, database = server.services.idempotency, server.services.database
    principal: Principal = server.services.authenticator.authenticate(alice.key)
    claims = [service.claim(principal, "PUT /v1/files", word) for word in ("long", "crashed")]
    slow, crashed = (claim.id for claim in claims if isinstance(claim, IdempotencyClaim))
    with database.session_scope() as session:
        session.query(IdempotencyRecord).update({"created_at": utc_now() - timedelta(hours=25)})
        session.get_one(IdempotencyRecord, crashed).lease_until = utc_now() - timedelta(1)
    with database.session_scope() as session:
        forget_old_answers(session)
    with database.session_scope() as session:
        assert session.get(IdempotencyRecord, crashed) is None
        assert isinstance(claims[0], IdempotencyClaim)
        service.finish(session, claims[0], Answered(bytes(32), 201, b"{}"))
    with database.session_scope() as session:
        forget_old_answers(session)
        assert session.get(IdempotencyRecord, slow) is not None
    assert isinstance(service.claim(principal, "PUT /v1/files", "long"), Answered)


def test_answers_are_forgotten_after_a_day(server: Server, alice: Account) -> None:
    """Then the key is as new."""
    header = key()
    alice.client.put("/v1/files?name=x", content=b"x", headers=header)
    with server.services.database.session_scope() as session:
        session.query(IdempotencyRecord).filter_by(key=header["Idempotency-Key"]).update(
            {"created_at": utc_now() - timedelta(hours=25)}
        )
    assert alice.client.put("/v1/files?name=y", content=b"y", headers=header).status_code == 201
    assert files_of(alice) == 2
