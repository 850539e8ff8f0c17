"""Requests with an Idempotency-Key and without are answered alike, to the byte."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from on_api.core.web.whole_bodies import MAX_BODY_BYTES
from on_api.tests.conftest import Account, Server

CID = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
_NEW_EACH_TIME = re.compile(
    rb'[0-9a-f]{8}-[0-9a-f-]{27}|urn:on-api:request:\w+|"20\d\d-[^"]*Z"|"cid":"[^"]*"'
)


def seen(answer: httpx.Response) -> tuple[int, list[tuple[str, str]], bytes]:
    """All of an answer but what differs between any two."""
    length = len(answer.content)
    headers = [
        (name, value.replace(str(length), "LENGTH"))
        for name, value in answer.headers.multi_items()
        if name not in {"x-request-id", "date"}
    ]
    return answer.status_code, headers, _NEW_EACH_TIME.sub(b"NEW", answer.content)


def both_ways(
    client: httpx.Client, method: str, url: str, headers: dict[str, str], **body: Any
) -> httpx.Response:
    """Ask without a key and with one; both must be alike."""
    without = client.request(method, url, headers=headers, **body)
    again = {**headers, "Idempotency-Key": str(uuid.uuid4())}
    with_key = client.request(method, url, headers=again, **body)
    assert seen(without) == seen(with_key), f"{method} {url} {headers} {body}"
    return without


def test_a_key_whose_uses_are_counted_is_used_once_a_request(alice: Account) -> None:
    """However often it is asked for: what is asked first counts nothing."""
    file_id = alice.upload(b"x")["id"]
    headers = {"Authorization": f"Bearer {alice.make_key('files:read', max_uses=3)}"}
    url = f"/v1/files/{file_id}"
    statuses = [alice.client.get(url, headers=headers).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 401, 401]


def callers(alice: Account) -> Iterator[dict[str, str]]:
    """Who may, who may not, and ways to say who."""
    narrow, counted = alice.make_key("keys:write"), alice.make_key("files:read", max_uses=2)
    ways = [
        f"Bearer {alice.key}", f"bearer {alice.key}", f"BEARER   {alice.key}", alice.key,
        f"Bearer\t{alice.key}", "Bearer", f"Basic {alice.key}", f"Bearer {alice.key}x",
        f"Bearer {narrow}", f"Bearer {counted}", f"Bearer {counted}", "",
    ]  # fmt: skip
    yield from ({"Authorization": way} for way in ways)


def test_metadata_is_the_same_both_ways(server: Server, alice: Account, bob: Account) -> None:
    """Own files and others', ids as they may be written, callers of every kind, both versions."""
    meta = json.dumps({"ä": [1.0, 1e300, None, "\u2028<&>", {"x": -0.0}], "n": 2**53 + 1})
    mine = alice.upload(b"hello world", name="地図 'a\"\\.pdf", meta=meta)
    private = alice.upload(b"hello world", visibility="private")
    theirs = bob.upload(b"hello world")
    ids = [mine["id"], private["id"], theirs["id"], uuid.uuid4(), "0", "x" * 3000, "%00", "{}", ""]
    ids += [str(mine["id"]).upper(), str(mine["id"]).replace("-", ""), f"{{{mine['id']}}}"]
    ids += [f"{mine['id']}?limit=1&x", f"{mine['id']}/", f"urn:uuid:{mine['id']}"]
    assert bob.client.get(f"/v1/files/{theirs['id']}").status_code == 200  # it is in memory
    for version in ("v1", "v2"):
        for file_id in ids:
            both_ways(alice.client, "GET", f"/{version}/files/{file_id}", {})
        assert alice.client.get(f"/{version}/files/{theirs['id']}").status_code == 404
        with server.client() as anonymous:
            statuses = {
                both_ways(anonymous, "GET", f"/{version}/files/{mine['id']}", who).status_code
                for who in callers(alice)
            }
        assert statuses == {200, 401, 403}


JSON_TYPE = {"Content-Type": "application/json"}
PINS: list[Any] = [
    {"cid": CID},
    {"cid": CID, "name": "", "origins": [], "meta": {}},
    {"cid": CID, "name": None, "origins": None, "meta": None, "unknown": 1},
    {"cid": CID, "name": "n" * 255, "meta": {"a": "b"}, "origins": ["/ip4/203.0.113.1/tcp/1", 7]},
    {"cid": CID, "name": "n" * 256},
    {"cid": CID, "name": "\x00"},
    {"cid": CID, "name": 7, "meta": {"a": 1}, "origins": "x"},
    {"cid": CID, "meta": {"a": "x" * 17_000}},
    {"cid": "no cid"},
    {"cid": None},
    {"cid": "x" * 5000},
    {"name": "without"},
    [],
    None,
    "text",
]
RAW_PINS = [
    b"", b"{", b"\xff\xfe", b"{}{}", b'{"cid": NaN}', b'{"cid": "\\ud800"}', b"[" * 100_000,
    b'{"cid": "a", "cid": "%s"}' % CID.encode(), b" " * MAX_BODY_BYTES + b"{}", b"\xef\xbb\xbf{}",
    json.dumps({"cid": CID}).encode("utf-16"),
]  # fmt: skip
TYPES = [
    "application/json; charset=utf-8", "application/vnd.x+json", "text/plain", "APPLICATION/JSON",
    "", "application/json, text/plain", "x",
]  # fmt: skip


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_pins_are_taken_alike_both_ways(server: Server, alice: Account, version: str) -> None:
    """Bodies that can be read and that can't, content types, callers."""
    # Kept, so that a pin of it has its end at once; else the worker may come between two answers.
    assert alice.upload(b"hello world")["cid"] == CID
    url = f"/{version}/pins"
    statuses = {
        both_ways(alice.client, "POST", url, JSON_TYPE, content=body).status_code
        for body in [*(json.dumps(pin).encode() for pin in PINS), *RAW_PINS]
    }
    assert statuses == {202, 400, 413}
    good = json.dumps({"cid": CID}).encode()
    for content_type in TYPES:
        both_ways(alice.client, "POST", url, {"Content-Type": content_type}, content=good)
    pieces = (good[start : start + 5] for start in range(0, len(good), 5))
    assert alice.client.post(url, headers=JSON_TYPE, content=pieces).status_code == 202
    with server.client() as anonymous:
        for who in callers(alice):
            both_ways(anonymous, "POST", url, {**JSON_TYPE, **who}, content=good)


UPLOADS = [
    "?name=a", "?name=a&name=b", "?name=", "?", "?name=%00", "?name=%ff", "?name=a%20b+c%2Bd",
    "?name=" + "x" * 256, "?name=a&visibility=public", "?name=a&visibility=private",
    "?name=a&visibility=secret", "?name=a&visibility=", "?name=a&meta={}", "?name=a&meta={",
    "?name=a&meta=[]", '?name=a&meta={"a":1}', "?name=a&meta=" + "[" * 10_000,
    "?name=a&passphrase=x", "?name=a&recipients=x", "?name=a&owner_access=false", "?name=a&x=1",
    "?NAME=a", "?name=a;visibility=private", "?name=a&visiblity=private", "?name=a&n%61me=b",
    "?name=%C3%A9&&", "?=x&name=a", "?name=a&visibility", "?name=a&%ff=x", "?name=%ED%A0%80",
    "?name=a&visibility=private&owner_access=true",
]  # fmt: skip
UPLOAD_HEADERS: list[dict[str, str]] = [
    {"Content-Type": "text/plain"},
    {"Content-Type": "nonsense"},
    {"Content-Type": "application/x-www-form-urlencoded"},
    {"Content-Range": "bytes 0-1/2"},
    {"On-Api-Passphrase": "long enough"},
    {"On-Api-Passphrase": "x"},
    {"Content-Type": "multipart/form-data; boundary=b"},
    {"Content-Type": "application/octet-stream"},
    {"Content-Type": "text/plain;"},
    {"Content-Encoding": "gzip"},
    {"Content-Encoding": "identity"},
    {"Content-MD5": "AAAA"},
]


def test_uploads_are_taken_alike_both_ways(server: Server, alice: Account) -> None:
    """Every option that a query may have, well and badly given; headers; callers."""
    statuses = {
        both_ways(alice.client, "PUT", f"/v1/files{query}", {}, content=b"x").status_code
        for query in UPLOADS
    }
    assert statuses == {201, 400}
    for headers in UPLOAD_HEADERS:
        for query in ("?name=a", "?name=a&visibility=private"):
            both_ways(alice.client, "PUT", f"/v2/files{query}", headers, content=b"x")
    for name in ("Content-Type", "Authorization", "On-Api-Passphrase"):
        twice = [(name, "text/plain"), (name, "text/plain")]
        answer = alice.client.put("/v1/files?name=a", headers=twice, content=b"x")
        assert answer.status_code == 400
        assert name in answer.json()["error"]["details"]
    with server.client() as anonymous:
        for who in callers(alice):
            both_ways(anonymous, "PUT", "/v1/files?name=a", who, content=b"x")


CONDITIONS: list[dict[str, str]] = [
    {},
    {"Range": "bytes=2-4"},
    {"Range": "bytes=-3"},
    {"Range": "bytes=99-"},
    {"Range": "bytes=0-1,3-4"},
    {"If-None-Match": "*"},
    {"If-Match": '"another"'},
    {"If-Range": '"another"', "Range": "bytes=1-"},
    {"On-Api-Passphrase": "some passphrase"},
]


def test_content_is_the_same_both_ways(server: Server, alice: Account, bob: Account) -> None:
    """Public, private, by a passphrase, somebody else's; ranges, conditions, queries, callers."""
    secret = {"On-Api-Passphrase": "some passphrase"}
    sealed = alice.client.put(
        "/v1/files?name=s&visibility=private", content=b"hello world", headers=secret
    ).json()
    files = [
        alice.upload(b"hello world", name="ä.txt"), alice.upload(b""), sealed,
        alice.upload(b"hello world", visibility="private"), bob.upload(b"hello world"),
    ]  # fmt: skip
    statuses = set()
    for method in ("GET", "HEAD"):
        for file in files:
            url = f"/v1/files/{file['id']}/content"
            for headers in CONDITIONS:
                statuses.add(both_ways(alice.client, method, url, headers).status_code)
            for query in ("download=1", "download=0", "download=", "download=x", "raw=1", "x=1"):
                both_ways(alice.client, method, f"{url}?{query}", {})
    assert statuses == {200, 206, 304, 400, 404, 412, 416}
    for file_id in ("0", uuid.uuid4(), str(files[0]["id"]).upper()):
        both_ways(alice.client, "GET", f"/v2/files/{file_id}/content", {})
    with server.client() as anonymous:
        for who in callers(alice):
            both_ways(anonymous, "GET", f"/v1/files/{files[0]['id']}/content", who)
