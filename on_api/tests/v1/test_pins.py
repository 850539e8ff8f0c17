"""Pin requests: what is taken, what is refused, and in which words; the same in every version."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from typing import Any

import httpx
import pytest

from on_api.core.ipfs.formats.cid import DAG_PB, IDENTITY, RAW, SHA2_256, encode, varint
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.models import Content, Holding, Pin, User
from on_api.tests.conftest import Account, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.pins import add_pin, charged, forms_of, list_pins, some_cid, version_0

PEER = "12D3KooWJ59N9z5CyLTtcUvzuRQDdGMbGRsUGv4zGbGKGN1Vdzpa"
ORIGIN = f"/ip4/203.0.113.7/tcp/4001/p2p/{PEER}"
CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_shape_of_a_pin(alice: Account) -> None:
    """What the specification requires; what there is nothing to say about is absent, never null."""
    cid = some_cid()
    status = add_pin(alice, cid)
    assert set(status) - {"info"} == {"requestid", "status", "created", "pin", "delegates"}
    assert status["status"] == "queued"
    assert status["pin"] == {"cid": cid}
    assert CREATED.fullmatch(status["created"])
    assert 1 <= len(status["delegates"]) <= 20
    assert all(re.search(r"^/ip4/.+/p2p/\w+$", address) for address in status["delegates"])
    seen = alice.client.get(f"/v1/pins/{status['requestid']}").json()
    assert (seen["created"], seen["pin"]) == (status["created"], status["pin"])
    everything = {"name": "n", "meta": {"a": "b"}, "origins": [ORIGIN]}
    full = add_pin(alice, cid, **everything)
    assert full["pin"] == {"cid": cid, **everything}
    assert "null" not in alice.client.get("/v1/pins", params={"name": "n"}).text


def test_what_on_api_keeps_is_pinned_at_once(server: Server, alice: Account, bob: Account) -> None:
    """Each request is a pin of its own with an id of its own; each user is charged once."""
    file = alice.upload(os.urandom(3000))
    cid = str(file["cid"])
    first, second = add_pin(alice, cid), add_pin(alice, cid, name="again")
    others = add_pin(bob, cid)
    assert {first["status"], second["status"], others["status"]} == {"pinned"}
    assert first["info"]["dag_size"] == "3000"
    assert len({pin["requestid"] for pin in (first, second, others)}) == 3
    assert charged(alice) == charged(bob) == 3000
    assert alice.client.delete(f"/v1/pins/{first['requestid']}").status_code == 202
    alice.client.delete(f"/v1/files/{file['id']}")
    assert charged(alice) == 3000
    alice.client.delete(f"/v1/pins/{second['requestid']}")
    assert (charged(alice), charged(bob)) == (0, 3000)
    with server.services.database.session_scope(write=False) as session:
        assert session.get_one(Content, cid).unreferenced_at is None


def test_removal_answers_202_without_a_body(alice: Account) -> None:
    """And the second time 404."""
    url = f"/v1/pins/{add_pin(alice)['requestid']}"
    answer = alice.client.delete(url)
    assert (answer.status_code, answer.content) == (202, b"")
    assert "content-type" not in answer.headers
    for method in ("GET", "DELETE"):
        gone = alice.client.request(method, url)
        assert gone.status_code == 404
        assert gone.json()["error"]["reason"] == "NOT_FOUND"


@pytest.mark.parametrize("base", forms_of(some_cid()))
def test_a_cid_is_kept_as_given_and_found_by_every_form(alice: Account, base: str) -> None:
    """In whatever base it was sent, or is asked for."""
    cid = some_cid()
    given = forms_of(cid)[base]
    pin = add_pin(alice, given)
    assert pin["pin"]["cid"] == given
    for form in (cid, *forms_of(cid).values()):
        [found] = list_pins(alice, cid=form)["results"]
        assert found["requestid"] == pin["requestid"]


def test_versions_and_codecs_of_one_hash(alice: Account) -> None:
    """Version 0 and 1 of one DAG are one content; raw and dag-pb of one hash are two."""
    digest = os.urandom(32)
    old, new = version_0(digest), encode(DAG_PB, SHA2_256, digest)
    leaf = encode(RAW, SHA2_256, digest)
    made = [add_pin(alice, cid)["requestid"] for cid in (old, new, leaf)]
    for cid, expected in ((old, made[:2]), (new, made[:2]), (leaf, made[2:])):
        found = [pin["requestid"] for pin in list_pins(alice, cid=cid)["results"]]
        assert found == expected[::-1]


def wrong_cids() -> dict[str, object]:
    """Texts (and others) that are no CID, or none that is accepted."""
    good, digest = some_cid(), os.urandom(32)

    def built(*numbers: int, tail: bytes) -> str:
        return "f" + (b"".join(map(varint, numbers)) + tail).hex()

    return {
        "empty": "",
        "blank": " ",
        "word": "hello",
        "base only": "b",
        "cut": good[:-1],
        "too long by one": good + "a",
        "path": f"/ipfs/{good}",
        "child": f"{good}/a",
        "line end": good + "\n",
        "NUL": good + "\x00",
        "other digits": "b" + "٣" * 58,
        "bad base58": "Qm" + "0" * 44,
        "number written long": "f" + (b"\x81\x00" + varint(RAW) + b"\x12\x20" + digest).hex(),
        "version 2": built(2, RAW, SHA2_256, 32, tail=digest),
        "version 0 in a base": built(0, RAW, SHA2_256, 32, tail=digest),
        "short digest": built(1, RAW, SHA2_256, 31, tail=digest[:31]),
        "cut digest": built(1, RAW, SHA2_256, 32, tail=digest[:31]),
        "more behind it": built(1, RAW, SHA2_256, 32, tail=digest + b"x"),
        "md5": built(1, RAW, 0xD5, 16, tail=digest[:16]),
        "unknown hash": built(1, RAW, 0x7FFF, 32, tail=digest),
        "over 128 characters": encode(RAW, IDENTITY, bytes(90)),
        "peer id": PEER,
        "number": 17,
        "null": None,
        "list": [good],
        "object": {"/": good},
    }


@pytest.mark.parametrize("kind", wrong_cids())
def test_what_is_no_cid_is_400(alice: Account, kind: str) -> None:
    """With a `Failure` that doesn't repeat it; on every operation that takes one."""
    wrong = wrong_cids()[kind]
    url = f"/v1/pins/{add_pin(alice)['requestid']}"
    answers = [alice.client.post(path, json={"cid": wrong}) for path in ("/v1/pins", url)]
    if isinstance(wrong, str):
        answers.append(alice.client.get("/v1/pins", params={"cid": wrong}))
    for answer in answers:
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["reason"] == "BAD_REQUEST"
        assert "cid" in answer.json()["error"]["details"]
        assert len(str(wrong)) < 10 or str(wrong) not in answer.text
    assert alice.client.get(url).status_code == 200
    assert list_pins(alice, status="queued,pinning,pinned,failed")["count"] == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'"bafkqaaa"', 400),
        (b"{}", 400),
        (b"[" * 100_000, 400),
        (b"\xff\xfe", 400),
        (b'{"cid": "bafkqaaa", "name": "\\ud800"}', 400),
        (b'{"cid": "bafkqaaa", "meta": {"a": "' + b"x" * 1_100_000 + b'"}}', 413),
    ],
    ids=repr,
)
def test_bodies_that_are_no_pin(alice: Account, body: bytes, status: int) -> None:
    """Refused whole."""
    json_type = {"Content-Type": "application/json"}
    answer = alice.client.post("/v1/pins", content=body, headers=json_type)
    assert answer.status_code == status
    assert answer.json()["error"]["reason"]


def test_fields_of_other_services_are_passed_over(alice: Account) -> None:
    """Clients send what their provider once wanted."""
    pin = add_pin(alice, region="eu", host_nodes=["x"], info={"a": 1})
    assert set(pin["pin"]) == {"cid"}


@pytest.mark.parametrize(
    ("origins", "kept"),
    [
        ([], 0),
        (None, 0),
        ([f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}"], 1),
        ([f"/ip4/10.0.0.1/udp/4001/quic-v1/p2p/{PEER}", ORIGIN, ORIGIN], 2),
        ([f"/ip4/203.0.113.7/tcp/{port}/p2p/{PEER}" for port in range(1, 100)], 20),
        (["", "nonsense", "/ip4/203.0.113.7/tcp/4001", "/ip4/999.1.1.1/tcp/1/p2p/" + PEER], 0),
        ([f"{ORIGIN}/p2p-circuit/p2p/{PEER}"], 0),
        (["/dns/" + "x" * 5000, "\x00", "\ud800", "ü", 7, None, ["a"], {"b": 1}, ORIGIN], 1),
        ([f"/dns4/a\x00b/tcp/1/p2p/{PEER}", f"/ip6/2001:db8::1%x/tcp/1/p2p/{PEER}"], 0),
        ("not a list", 0),
        ({"a": 1}, 0),
        (17, 0),
    ],
)
def test_origins_never_refuse_a_pin(alice: Account, origins: Any, kept: int) -> None:
    """Private, broken, too many, no strings, no list: what could be dialled is kept, up to 20."""
    body = json.dumps({"cid": some_cid(), "origins": origins})
    answer = alice.client.post(
        "/v1/pins", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 202, answer.text
    assert len(answer.json()["pin"].get("origins", [])) == kept
    assert ("origins" in answer.json()["pin"]) is bool(kept)


@pytest.mark.parametrize(
    "name", ["x" * 255, "ü" * 255, "🦄" * 255, "%_\\'\"`;--", "a\nb\tc", " ", "‮abc", "null"]
)
def test_any_name_of_255_characters_comes_back(alice: Account, name: str) -> None:
    """Characters, not bytes; and is found by it."""
    pin = add_pin(alice, name=name)
    assert pin["pin"]["name"] == name
    [found] = list_pins(alice, name=name)["results"]
    assert found["requestid"] == pin["requestid"]


@pytest.mark.parametrize("name", ["x" * 256, "a\x00b", 7, ["a"], True])
def test_names_that_are_none(alice: Account, name: object) -> None:
    """Too long, not storable, no text."""
    answer = alice.client.post("/v1/pins", json={"cid": some_cid(), "name": name})
    assert answer.status_code == 400
    assert "name" in answer.json()["error"]["details"]


def test_no_name_is_absent(alice: Account) -> None:
    """Left out, null or empty."""
    for more in ({}, {"name": None}, {"name": ""}):
        assert "name" not in add_pin(alice, **more)["pin"]


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"app_id": "99986338-1113-4706-8302-4420da6158aa"},
        {"": "", "ü": "日本", 'q"': "\\\n", "a.b": "$.x", "🦄": "🦄"},
        {str(n): "x" for n in range(1000)},
        {"a": "x" * (16 * 1024 - 1)},
    ],
    ids=lambda meta: f"{len(meta)} entries",
)
def test_meta_comes_back(alice: Account, meta: dict[str, str]) -> None:
    """Any texts, up to 1,000 of them and 16 KiB."""
    pin = add_pin(alice, meta=meta)
    assert pin["pin"]["meta"] == meta
    assert alice.client.get(f"/v1/pins/{pin['requestid']}").json()["pin"]["meta"] == meta


@pytest.mark.parametrize(
    "meta",
    [
        {"a": 1},
        {"a": None},
        {"a": True},
        {"a": {"b": "c"}},
        {"a": ["b"]},
        {"a": "\x00"},
        {"\x00": "a"},
        {str(n): "x" for n in range(1001)},
        {"a": "x" * 16 * 1024},
        [],
        "a",
        7,
    ],
    ids=lambda meta: str(meta)[:20],
)
def test_meta_that_is_none(alice: Account, meta: object) -> None:
    """Other values than texts, or too much; in a body and as a filter."""
    answer = alice.client.post("/v1/pins", json={"cid": some_cid(), "meta": meta})
    assert answer.status_code == 400
    assert "meta" in answer.json()["error"]["details"]
    query = {"meta": json.dumps(meta)}
    assert alice.client.get("/v1/pins", params=query).status_code == 400


@pytest.mark.parametrize(
    "odd",
    [
        "x",
        "%00",
        "%0a",
        "..%2f..",
        "1" * 3000,
        "ü",
        "null",
        "-1",
        "{}",
        "a b",
        str(uuid.UUID(int=7)),
    ],
)
def test_ids_that_are_of_no_pin_are_404(alice: Account, odd: str) -> None:
    """Ids are opaque: whatever is none of yours isn't there."""
    for method, body in (("GET", None), ("DELETE", None), ("POST", {"cid": some_cid()})):
        answer = alice.client.request(method, f"/v1/pins/{odd}", json=body)
        assert answer.status_code == 404, answer.text
        assert answer.json()["error"]["reason"] == "NOT_FOUND"


def test_an_id_has_one_form(alice: Account, bob: Account) -> None:
    """The one that was given; and it is nothing to somebody else."""
    given = add_pin(alice)["requestid"]
    assert bob.client.get(f"/v1/pins/{given}").status_code == 404
    assert bob.client.delete(f"/v1/pins/{given}").status_code == 404
    assert bob.client.post(f"/v1/pins/{given}", json={"cid": some_cid()}).status_code == 404
    assert list_pins(bob, status="queued,pinning,pinned,failed") == {"count": 0, "results": []}
    for other in (given.replace("-", ""), given.upper(), f"{{{given}}}", f"urn:uuid:{given}"):
        assert alice.client.get(f"/v1/pins/{other}").status_code == 404
    assert alice.client.get(f"/v1/pins/{given}").status_code == 200


def test_scopes(server: Server, alice: Account) -> None:
    """Reading and writing are two scopes; nothing else opens pins."""
    made = add_pin(alice)["requestid"]
    for scope, reads, writes in (
        ("pins:read", 200, 403),
        ("pins:write", 403, 202),
        ("files:write", 403, 403),
    ):
        with server.client(alice.make_key(scope)) as client:
            assert client.get("/v1/pins").status_code == reads
            assert client.get(f"/v1/pins/{made}").status_code == reads
            added = client.post("/v1/pins", json={"cid": some_cid()})
            assert added.status_code == writes
            if writes == 202:
                url = f"/v1/pins/{added.json()['requestid']}"
                replaced = client.post(url, json={"cid": some_cid()})
                assert replaced.status_code == 202
                assert client.delete(f"/v1/pins/{replaced.json()['requestid']}").is_success
            else:
                assert added.json()["error"]["reason"] == "INSUFFICIENT_SCOPE"
                assert client.delete(f"/v1/pins/{made}").status_code == 403


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_without_a_valid_key_it_is_401(server: Server, alice: Account, version: str) -> None:
    """In every form in which there is none."""
    revoked = alice.make_key("pins:read")
    [key] = [k for k in alice.client.get("/v1/keys").json()["items"] if k["name"] == "narrow"]
    alice.client.delete(f"/v1/keys/{key['id']}")
    with server.client() as client:
        for header in (
            None,
            "",
            "Bearer",
            alice.key,
            f"Basic {alice.key}",
            f"Token {alice.key}",
            f"Bearer {alice.key}x",
            "Bearer purposefullyInvalid",
            f"Bearer {revoked}",
        ):
            headers = {} if header is None else {"Authorization": header}
            answer = client.get(f"/{version}/pins", headers=headers)
            assert answer.status_code == 401, header
            assert set(answer.json()) == {"error"}
            assert answer.json()["error"]["reason"] == "UNAUTHORIZED"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get(f"/{version}/pins?access_token={alice.key}").status_code == 401
        lower = {"Authorization": f"bearer {alice.key}"}
        assert client.get(f"/{version}/pins", headers=lower).status_code == 200


def test_once_per_idempotency_key(alice: Account) -> None:
    """A repeat adds no second pin, and a repeated replacement finds what it did."""
    header = {"Idempotency-Key": str(uuid.uuid4())}
    body = {"cid": some_cid()}
    first, again = (alice.client.post("/v1/pins", json=body, headers=header) for _ in range(2))
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    other = alice.client.post("/v1/pins", json={"cid": some_cid()}, headers=header)
    assert (other.status_code, other.json()["error"]["reason"]) == (409, "CONFLICT")
    url = f"/v1/pins/{first.json()['requestid']}"
    new = {"cid": some_cid()}
    replaced, repeat = (alice.client.post(url, json=new, headers=header) for _ in range(2))
    assert (repeat.status_code, repeat.content) == (202, replaced.content)
    assert alice.client.post(url, json=new).status_code == 404
    assert list_pins(alice, status="queued,pinning,pinned,failed")["count"] == 1


def test_version_2_is_the_same(server: Server, alice: Account) -> None:
    """The specification's bodies, in errors too, and the same pins."""
    cid = str(alice.upload(b"v2")["cid"])
    pin = alice.client.post("/v2/pins", json={"cid": cid, "name": "v2"})
    assert pin.status_code == 202
    url = f"/v2/pins/{pin.json()['requestid']}"
    assert alice.client.get(url).json() == pin.json()
    assert alice.client.get("/v2/pins").json() == alice.client.get("/v1/pins").json()
    with server.client(alice.make_key("files:read")) as narrow:
        answers: dict[int, httpx.Response] = {
            400: alice.client.post("/v2/pins", json={"cid": "x"}),
            403: narrow.get("/v2/pins"),
            404: alice.client.get(f"/v2/pins/{uuid.uuid4()}"),
            405: alice.client.put(url, json={}),
        }
    for status, answer in answers.items():
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/json"
        assert set(answer.json()["error"]) == {"reason", "details"}
    replaced = alice.client.post(url, json={"cid": cid})
    assert replaced.status_code == 202
    assert alice.client.get(url).status_code == 404
    assert alice.client.delete(f"/v2/pins/{replaced.json()['requestid']}").status_code == 202


def ends(account: Account, pin: dict[str, Any]) -> dict[str, Any]:
    """The pin when it has an end."""

    def ended() -> dict[str, Any] | None:
        status = account.client.get(f"/v1/pins/{pin['requestid']}").json()
        return dict(status) if status["status"] in {"pinned", "failed"} else None

    return until(ended, "the pin has an end")


def test_what_nobody_can_provide_fails_and_says_what_to_do(alice: Account) -> None:
    """On a private node without peers, at once."""
    failed = ends(alice, add_pin(alice))
    assert failed["status"] == "failed"
    assert "ON_API_NODE__NETWORK=public" in failed["info"]["status_details"]


def test_what_a_cid_itself_holds_is_pinned(alice: Account) -> None:
    """Identity CIDs need nobody."""
    for cid in ("bafkqaaa", encode(RAW, IDENTITY, b"hello")):
        pinned = ends(alice, add_pin(alice, cid))
        assert pinned["status"] == "pinned", pinned


def test_a_part_of_what_is_pinned_outlives_the_whole(server: Server, alice: Account) -> None:
    """A child of a pinned DAG is a content of its own, with its own charge and its own pin."""
    data = os.urandom(2 * 1024 * 1024)
    whole = build_file(data)
    file = alice.upload(data)
    assert file["cid"] == whole.cid
    leaf = encode(RAW, SHA2_256, hashlib.sha256(data[: 1024 * 1024]).digest())
    pinned = ends(alice, add_pin(alice, leaf))
    assert pinned["status"] == "pinned"
    assert pinned["info"] == {"dag_size": str(1024 * 1024), "blocks": "1"}
    alice.client.delete(f"/v1/files/{file['id']}")
    assert charged(alice) == 1024 * 1024
    with server.services.database.session_scope(write=False) as session:
        assert session.get_one(Content, whole.cid).unreferenced_at is not None
        assert session.get_one(Content, leaf).unreferenced_at is None


def test_a_deleted_account_lets_go_of_its_pins(
    server: Server, admin: Account, bob: Account
) -> None:
    """Pinned, failed and queued ones; what others hold stays."""
    gone = server.new_user()
    shared = str(bob.upload(os.urandom(100))["cid"])
    own = str(gone.upload(os.urandom(200))["cid"])
    for cid in (shared, own, own):
        add_pin(gone, cid)
    ends(gone, add_pin(gone))
    add_pin(gone)
    assert admin.client.delete(f"/v1/users/{gone.id}").is_success
    assert gone.client.get("/v1/pins").status_code == 401
    gone.client.close()

    def is_gone() -> bool:
        with server.services.database.session_scope(write=False) as session:
            return session.get(User, uuid.UUID(gone.id)) is None

    until(is_gone, "the account is removed", 60)
    with server.services.database.session_scope(write=False) as session:
        user_id = uuid.UUID(gone.id)
        assert not session.query(Pin).filter_by(user_id=user_id).count()
        assert not session.query(Holding).filter_by(user_id=user_id).count()
        assert session.get_one(Content, own).unreferenced_at is not None
        assert session.get_one(Content, shared).unreferenced_at is None
    assert charged(bob) == 100


def test_a_pin_is_no_file(alice: Account) -> None:
    """Pins and files are two lists over one content."""
    cid = str(alice.upload(b"of a pin and a file")["cid"])
    add_pin(alice, cid)
    assert alice.client.get("/v1/files").json()["count"] == 1
