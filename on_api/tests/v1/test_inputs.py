"""What a client says of its request is heard or refused: codings and forms of a body, digests,
options that nobody knows, headers that come twice."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from on_api.tests.conftest import PASSWORD, Account, Server

DATA = b"some bytes of a file\n"
URLENCODED = {"Content-Type": "application/x-www-form-urlencoded"}
Sent = Callable[..., httpx.Response]


@pytest.fixture(params=["put", "form", "car", "json", "login", "link"])
def send(request: pytest.FixtureRequest, server: Server, alice: Account) -> Iterator[Sent]:
    """Every kind of body, sent with headers of one's own."""
    routes: dict[str, tuple[str, str, dict[str, Any]]] = {
        "put": ("PUT", "/v1/files?name=a", {"content": DATA}),
        "form": ("POST", "/v1/files", {"files": {"file": ("a", DATA)}}),
        "car": ("PUT", "/v1/imports/{import_id}/car", {"content": DATA}),
        "json": ("POST", "/v1/keys", {"json": {"name": "k", "scopes": ["files:read"]}}),
        "login": ("POST", "/v1/auth/token", {"data": {"username": "a", "password": "b"}}),
        "link": ("POST", "/s/nothing", {"data": {"password": "b"}}),
    }
    method, url, body = routes[request.param]
    if request.param == "car":
        made = alice.client.post("/v1/imports", json={"source": {"kind": "car"}})
        url = url.format(import_id=made.json()["id"])

    def send(headers: dict[str, str] | list[tuple[str, str]]) -> httpx.Response:
        return alice.client.request(method, url, headers=headers, **body)

    yield send
    assert alice.client.get("/v1/files").json()["count"] == 0


def test_coded_bodies_are_415(send: Sent) -> None:
    """With what is accepted instead (RFC 9110, 15.5.16), whatever the body is; also where another
    header of the name comes first."""
    for coding in ("gzip", "DEFLATE", "br", "zstd", "identity,\tgzip", "aws-chunked", "x-unknown"):
        for first in (coding, "identity"):
            answer = send([("Content-Encoding", first), ("content-encoding", coding)])
            assert answer.status_code == 415, answer.text
            assert answer.headers["accept-encoding"] == "identity"
            assert "Content-Encoding" in answer.text


def test_a_part_of_a_body_is_400(send: Sent) -> None:
    """It would pass for the whole (RFC 9110, 14.5)."""
    answer = send({"Content-Range": "bytes 0-1/2"})
    assert answer.status_code == 400
    assert "Content-Range" in answer.text


def test_headers_of_one_value_that_come_twice_are_400(send: Sent) -> None:
    """Neither of the two is the right one; nor is one that is the same."""
    for name in ("Idempotency-Key", "On-Api-Passphrase", "Authorization", "On-Api-Share-Password"):
        for other in ("the first", "another"):
            answer = send([(name, "the first"), (name.lower(), other)])
            assert answer.status_code == 400
            assert name in answer.text
            assert "another" not in answer.text


def test_bodies_of_another_digest_are_400(send: Sent) -> None:
    """What came isn't what was sent: nothing is stored of it."""
    for header in (
        ("Content-Digest", "sha-256=:AAAA:"),
        ("Repr-Digest", "sha-512=:AAAA:"),
        ("Digest", "SHA-256=AAAA"),
        ("Content-MD5", "AAAA"),
        ("Content-Digest", "sha-256=AAA"),
        ("Content-Digest", "sha-256"),
    ):
        answer = send([header])
        assert answer.status_code == 400
        assert "digest" in answer.text


def test_bodies_of_their_digest_are_taken(alice: Account) -> None:
    """In every header that there is for it; algorithms that aren't known are passed over."""

    def encoded(digest: bytes) -> str:
        return base64.b64encode(digest).decode()

    sha256 = encoded(hashlib.sha256(DATA).digest())
    md5 = encoded(hashlib.md5(DATA, usedforsecurity=False).digest())
    for headers in (
        {"Content-Digest": f"sha-256=:{sha256}:, unixsum=:AA:, x"},
        {"Repr-Digest": f"sha-512=:{encoded(hashlib.sha512(DATA).digest())}:"},
        {"Digest": f"SHA-256={sha256},MD5={md5}", "Content-MD5": md5},
        {"Content-Digest": "id-sha-256=:AAAA:"},
    ):
        answer = alice.client.put("/v1/files?name=a", content=DATA, headers=headers)
        assert answer.status_code == 201, answer.text
    large = bytes(3_000_000)
    right = {"Content-Digest": f"sha-256=:{encoded(hashlib.sha256(large).digest())}:"}
    assert alice.client.put("/v1/files?name=l", content=large, headers=right).status_code == 201
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nx\r\n--b--'
    headers = {
        "Content-Digest": f"sha-256=:{encoded(hashlib.sha256(form).digest())}:",
        "Content-Type": "multipart/form-data; boundary=b;",
    }
    assert alice.client.post("/v1/files", content=form, headers=headers).status_code == 201


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data; boundary=b", "Multipart/Mixed", "multipart/related; boundary=x"],
)
def test_a_form_sent_as_a_file_is_415(alice: Account, content_type: str) -> None:
    """As `curl -X PUT -F file=@a.png` sends it: its boundaries would be stored. The answer says
    what to send."""
    form = b"--b\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\nx\r\n--b--\r\n"
    headers = {"Content-Type": content_type}
    for visibility in ("public", "private"):
        url = f"/v1/files?name=a&visibility={visibility}"
        answer = alice.client.put(url, content=form, headers=headers)
        assert answer.status_code == 415
        assert "curl -T" in answer.json()["error"]["details"]
    made = alice.client.post("/v1/imports", json={"source": {"kind": "car"}}).json()
    car = alice.client.put(f"/v1/imports/{made['id']}/car", content=form, headers=headers)
    assert car.status_code == 415
    assert alice.client.get("/v1/files").json()["count"] == 0


def test_media_types_that_say_nothing(alice: Account) -> None:
    """What clients send by themselves isn't believed; both ways to upload take it alike."""
    for sent, stored in (
        (None, "application/json"),
        ("application/x-www-form-urlencoded", "application/json"),
        ("Application/X-WWW-Form-Urlencoded; charset=UTF-8", "application/json"),
        ("application/octet-stream", "application/json"),
        ("", "application/json"),
        ("text/plain;", "text/plain"),
        ("text/plain; ;charset=utf-8;", "text/plain; charset=utf-8"),
        ("text/plain;charset=utf-8", "text/plain;charset=utf-8"),
    ):
        headers = {} if sent is None else {"Content-Type": sent}
        file = alice.client.put("/v1/files?name=a.json", content=b"{}", headers=headers)
        line = "" if sent is None else f"Content-Type: {sent}\r\n"
        head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="a.json"\r\n{line}'
        body = f"{head}\r\n{{}}\r\n--b--".encode()
        form = {"Content-Type": "multipart/form-data; boundary=b"}
        other = alice.client.post("/v1/files", content=body, headers=form)
        assert (file.status_code, other.status_code) == (201, 201)
        assert file.json()["media_type"] == other.json()["media_type"] == stored


def test_coded_bytes_that_are_a_file_are_stored(alice: Account) -> None:
    """A compressed file is a file: only the header says that it is something else."""
    packed = gzip.compress(DATA)
    headers = {"Content-Encoding": "Identity", "Content-Type": "application/gzip"}
    file = alice.client.put("/v1/files?name=a.gz", content=packed, headers=headers).json()
    assert alice.client.get(f"/v1/files/{file['id']}/content").content == packed


UNHEARD = [
    ("name=d&visiblity=private", "visiblity"),
    ("name=d&visibility=private&visibility=public", "visibility"),
    ("name=d&visibility=private&visibility=private", "visibility"),
    ("name=d&Visibility=private", "Visibility"),
    ("name=d;visibility=private", "visibility"),
    ("name=d&visibility", "visibility"),
    ("name=d&visibility=", "visibility"),
    ("name=d&%76isiblity=private", "visiblity"),
    ("name=d&=private", "empty"),
    ("name=d&visibility%20=private", "visibility "),
    ("name=caf%E9", "name"),
    ("name=d&%E9=x", "not UTF-8"),
    ("name=d&meta={%22a%22:1,%22a%22:2}", "meta"),
]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_options_of_an_upload_that_would_not_be_heard(alice: Account, version: str) -> None:
    """400 with their name, by PUT and by POST; nothing is stored, least of all in public."""
    for query, named in UNHEARD:
        url = f"/{version}/files?{query}"
        for answer in (
            alice.client.put(url, content=DATA),
            alice.client.post(url, files={"file": ("a", DATA)}),
        ):
            assert answer.status_code == 400, query
            assert named in answer.text
    assert alice.client.get("/v1/files").json()["count"] == 0


def test_the_answer_names_what_was_meant(alice: Account) -> None:
    """Where one is near; and repeats nothing that can't be shown."""
    answer = alice.client.get("/v1/files?visiblity=private").json()
    assert "Did you mean visibility?" in answer["error"]["details"]
    odd = alice.client.get("/v2/files?%1b%0a" + "x" * 5000).json()["detail"]
    assert odd.isprintable()
    assert len(odd) < 200


def test_what_is_listed_may_come_more_than_once(alice: Account) -> None:
    """Lists may be repeated, and a piece between two & that is empty is nothing."""
    cid = alice.upload(DATA)["cid"]
    alice.client.post("/v1/pins", json={"cid": cid})
    found = alice.client.get(f"/v1/pins?cid={cid}&cid=bafkqaaa&&status=queued&status=pinned&")
    assert found.status_code == 200
    alice.upload(DATA, visibility="private")
    mine = alice.client.get("/v1/users/me/identities").json()["items"][0]["recipient"]
    url = f"/v1/files?name=p&visibility=private&recipients={mine}&recipients={mine}"
    assert alice.client.put(url, content=DATA).status_code == 201


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/s/nothing"])
def test_paths_without_options_take_none(anonymous: httpx.Client, path: str) -> None:
    """Unversioned ones too."""
    answer = anonymous.get(f"{path}?verbose=1")
    assert answer.status_code == 400
    assert "verbose" in answer.json()["error"]["details"]


@pytest.mark.parametrize("path", ["/docs", "/v2/docs", "/v1/openapi.json"])
def test_pages_may_be_asked_for_with_anything(anonymous: httpx.Client, path: str) -> None:
    """Links and tools add marks to them (`?v=2`), and nothing could be meant by it."""
    assert anonymous.get(f"{path}?v=2").status_code == 200


def test_fields_of_a_login_that_would_not_be_heard(server: Server, alice: Account) -> None:
    """A typo in `scope` would make a token that may do everything."""
    fields = {"username": alice.username, "password": PASSWORD}
    login = f"username={alice.username}&password={PASSWORD.replace(' ', '+')}"
    url = "/v1/auth/token"
    with server.client() as anonymous:
        assert anonymous.post(url, content=login, headers=URLENCODED).status_code == 200
        for form, named in (
            ("scopes=files:read", "scopes"),
            ("scope=files:read&scope=files:write", "scope"),
            ("%E9=x", "not UTF-8"),
            ("client_id=%E9", "client_id"),
        ):
            answer = anonymous.post(url, content=f"{login}&{form}", headers=URLENCODED)
            assert answer.status_code == 400
            assert named in answer.json()["error"]["details"]
        parts = {name: (None, value) for name, value in {**fields, "scopes": "x"}.items()}
        answer = anonymous.post(url, files=parts)
        assert answer.status_code == 400
        assert "scopes" in answer.json()["error"]["details"]
        assert anonymous.post(url, json=fields).status_code == 415
        latin = {"Content-Type": "application/x-www-form-urlencoded; charset=iso-8859-1"}
        assert anonymous.post(url, content=login, headers=latin).status_code == 415


def test_a_password_that_isnt_percent_encoded_logs_in(server: Server, alice: Account) -> None:
    """As `curl -d password=…` sends it."""
    new = "pässwörd 地図"
    change = {"current_password": PASSWORD, "new_password": new}
    assert alice.client.post("/v1/users/me/password", json=change).status_code in {200, 204}
    login = f"username={alice.username}&password={new}".encode()
    with server.client() as anonymous:
        answer = anonymous.post("/v1/auth/token", content=login, headers=URLENCODED)
    assert answer.status_code == 200, answer.text


KEY = '{"name": "ä", "scopes": ["files:read"]}'
JSON_BODIES = [
    ("application/json", KEY.replace("{", '{"name": "b", ').encode(), 400),
    ("application/json; charset=latin-1", KEY.encode(), 415),
    ("application/json; charset=utf-16", KEY.encode("utf-16"), 415),
    ("application/json", KEY.encode("latin-1"), 400),
    ('application/json; Charset="UTF-8"', KEY.encode(), 201),
    ("application/json;", KEY.encode("utf-8-sig"), 201),
    ("text/plain", KEY.encode(), 400),
    ("application/x-www-form-urlencoded", KEY.encode(), 400),
    ("multipart/form-data; boundary=b", KEY.encode(), 400),
]


def test_json_in_another_form(alice: Account) -> None:
    """Nothing is chosen of what is said twice, nothing is read in another charset than it has."""
    for content_type, body, status in JSON_BODIES:
        headers = {"Content-Type": content_type}
        answer = alice.client.post("/v1/keys", content=body, headers=headers)
        assert answer.status_code == status, (content_type, answer.text)
        if status == 201:
            assert answer.json()["name"] == "ä"


def test_options_in_query_and_form(alice: Account) -> None:
    """The same twice is one; two that differ are none, nor is one that isn't known."""

    def post(query: str, **fields: str) -> int:
        files = {"file": ("a", DATA)}
        return alice.client.post(f"/v1/files?{query}", data=fields, files=files).status_code

    assert post("visibility=private", visibility="private") == 201
    assert post("visibility=private", visibility="public") == 400
    assert post("name=a", name="b") == 400
    assert post("", visiblity="private") == 400
    assert post("", Visibility="private") == 400
    assert post("", meta=json.dumps({"a": 1})[:-1] + ', "a": 2}') == 400
    assert alice.client.get("/v1/files").json()["count"] == 1


def test_a_form_that_ends_too_soon_is_nothing(alice: Account) -> None:
    """A Content-Length that is too small cuts it; what was whole before isn't stored either."""
    part = b"--b\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\nx\r\n"
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    for end in (b"", b"--b", b"--b-", b"--b\r\n"):
        answer = alice.client.post("/v1/files", content=part + end, headers=form)
        assert answer.status_code == 400
    assert alice.client.get("/v1/files").json()["count"] == 0
