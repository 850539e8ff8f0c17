"""Files: what goes in comes out, from on-api and from the node's own gateway."""

from __future__ import annotations

import hashlib
import io
import os
from email.message import Message
from unicodedata import normalize
from urllib.parse import unquote

import httpx
import pytest

from on_api.core.ipfs.formats.unixfs import build_file
from on_api.tests.conftest import Account, Server
from on_api.tests.testing.plain_http import NO_TLS

MIB = 1024 * 1024
HELLO = b"hello world"
HELLO_CID = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
ODD_NAMES = [
    'ä "quoted" 日本語 %41 100%.txt',
    "'; filename=evil.exe",
    "back\\slash",
    "🦄" * 60,
    "a,b;c=d.tar.gz",
]


def gateway_bytes(server: Server, cid: str) -> bytes:
    """What the node's own gateway says, asked as a person would: by localhost, following
    nothing."""
    assert server.settings.ipfs.gateway_url is not None
    url = server.settings.ipfs.gateway_url.replace("127.0.0.1", "localhost")
    answer = httpx.get(f"{url}/ipfs/{cid}", follow_redirects=False, verify=NO_TLS, trust_env=False)
    assert answer.status_code == 200
    return answer.content


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 7])
@pytest.mark.parametrize("way", ["put", "multipart"])
def test_upload_is_on_the_node_and_comes_back(
    server: Server, alice: Account, size: int, way: str
) -> None:
    """The CID is the profile's, the bytes are the same on the node's gateway and through the
    API."""
    data = os.urandom(size)
    if way == "put":
        answer = alice.client.put("/v1/files", params={"name": "x.bin"}, content=data)
    else:
        answer = alice.client.post("/v1/files", files={"file": ("x.bin", io.BytesIO(data))})
    assert answer.status_code == 201, answer.text
    file = answer.json()
    assert file["cid"] == build_file(data).cid
    assert file["size"] == size
    assert file["sha256"] == hashlib.sha256(data).hexdigest()
    assert gateway_bytes(server, file["cid"]) == data
    content = alice.client.get(f"/v1/files/{file['id']}/content")
    assert content.content == data
    assert content.headers["content-length"] == str(size)


def test_shape_of_a_file(alice: Account) -> None:
    """Every field that clients rely on, and no other."""
    answer = alice.client.post(
        "/v1/files",
        data={"visibility": "public", "meta": '{"project": "atlas"}'},
        files={"file": ("hello.txt", HELLO, "text/plain; charset=utf-8")},
    )
    assert answer.status_code == 201
    file = answer.json()
    assert file.pop("id")
    assert file.pop("created_at").endswith("Z")
    assert file.pop("gateway_url").endswith(f"/ipfs/{HELLO_CID}")
    assert file == {
        "cid": HELLO_CID,
        "source_cid": None,
        "name": "hello.txt",
        "size": 11,
        "media_type": "text/plain; charset=utf-8",
        "sha256": hashlib.sha256(HELLO).hexdigest(),
        "visibility": "public",
        "meta": {"project": "atlas"},
    }


def test_what_is_left_empty_in_a_form_is_not_there(alice: Account) -> None:
    """Browsers send every input, filled in or not; an empty file input is no file."""

    def form(*parts: str) -> httpx.Response:
        lines = "".join(f"--b\r\nContent-Disposition: form-data; {part}\r\n" for part in parts)
        return alice.client.post(
            "/v1/files",
            content=f"{lines}--b--\r\n".encode(),
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        )

    nothing_chosen = 'name="file"; filename=""\r\nContent-Type: application/octet-stream\r\n\r\n'
    answer = form(
        'name="name"\r\n\r\n',
        'name="meta"\r\n\r\n',
        'name="visibility"\r\n\r\n',
        'name="file"; filename="chosen.txt"\r\n\r\nhello',
        nothing_chosen,
    )
    assert answer.status_code == 201, answer.text
    assert (answer.json()["name"], answer.json()["meta"]) == ("chosen.txt", {})
    assert form(nothing_chosen).status_code == 400


def test_several_files_in_one_upload_keep_their_order(alice: Account) -> None:
    """Several parts answer `items`; the list shows the last one first."""
    parts = [("file", (f"{n}.txt", f"file {n}".encode(), "text/plain")) for n in range(5)]
    answer = alice.client.post("/v1/files", files=parts)
    assert answer.status_code == 201
    assert [item["name"] for item in answer.json()["items"]] == [f"{n}.txt" for n in range(5)]
    listed = alice.client.get("/v1/files").json()
    assert listed["count"] == 5
    assert [item["name"] for item in listed["items"]] == [f"{n}.txt" for n in range(4, -1, -1)]
    moments = [item["created_at"] for item in listed["items"]]
    assert sorted(set(moments), reverse=True) == moments


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"files": {"other": ("a", b"x")}}, "named `file`"),
        ({"data": {"visibility": "secret"}, "files": {"file": ("a", b"x")}}, "visibility"),
        ({"data": {"colour": "red"}, "files": {"file": ("a", b"x")}}, "Unknown form field"),
        ({"data": {"meta": "[1]"}, "files": {"file": ("a", b"x")}}, "meta"),
        ({"data": {"meta": '{"a": NaN}'}, "files": {"file": ("a", b"x")}}, "meta"),
        ({"data": {"meta": '{"a": "\\u0000"}'}, "files": {"file": ("a", b"x")}}, "NUL"),
        (
            {"params": {"name": "n"}, "files": [("file", ("a", b"x")), ("file", ("b", b"y"))]},
            "name",
        ),
        ({"params": {"name": "\x00"}, "files": {"file": ("a", b"x")}}, "control"),
        ({"files": {"file": ("x" * 256, b"x")}}, "255"),
        ({"files": {"file": ("a", b"x", "not a type")}}, "media type"),
        ({"data": {"name": "n"}, "files": {"x": (None, b"")}}, "Unknown form field"),
    ],
)
def test_a_wrong_upload_is_refused_whole(
    alice: Account, kwargs: dict[str, object], reason: str
) -> None:
    """400 with the reason, and no record: not of the good parts before the bad one either."""
    answer = alice.client.post("/v1/files", **kwargs)  # type: ignore[arg-type]
    assert answer.status_code == 400
    assert answer.json()["error"]["reason"] == "BAD_REQUEST"
    assert reason in answer.json()["error"]["details"]
    assert alice.client.get("/v1/files").json()["count"] == 0


def test_bodies_that_are_no_form(alice: Account) -> None:
    """JSON to the upload is 415, an empty form and a missing name are 400, and so is a file's
    second half."""
    assert alice.client.post("/v1/files", json={}).status_code == 415
    assert alice.client.post("/v1/files").status_code == 415
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    assert alice.client.post("/v1/files", content=b"--b--\r\n", headers=form).status_code == 400
    assert alice.client.post("/v1/files", content=b"nothing", headers=form).status_code == 400
    assert alice.client.put("/v1/files", content=b"x").status_code == 400
    rest = {"Content-Range": "bytes 1-1/2"}
    assert alice.client.put("/v1/files?name=x", content=b"x", headers=rest).status_code == 400
    assert alice.client.get("/v1/files").json()["count"] == 0


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_survives_upload_and_download(alice: Account, name: str) -> None:
    """As multipart filename and by query; back in Content-Disposition, read by an independent
    parser."""
    by_query = alice.upload(HELLO, name=name)
    by_form = alice.client.post("/v1/files", files={"file": (name, HELLO)}).json()
    assert by_query["name"] == by_form["name"] == name
    for download, kind in (("0", "inline"), ("1", "attachment")):
        answer = alice.client.get(f"/v1/files/{by_form['id']}/content?download={download}")
        message = Message()
        message["Content-Disposition"] = answer.headers["content-disposition"]
        assert message.get_content_disposition() == kind
        # Python's parser prefers the plain `filename`; RFC 6266 says that `filename*` wins.
        plain, _, extended = answer.headers["content-disposition"].partition("; filename*=")
        assert plain.isascii()
        if extended:
            assert unquote(extended.removeprefix("UTF-8''")) == name
        else:
            assert message.get_filename() == name


def test_media_type_is_kept_and_found_out_only_when_absent(alice: Account) -> None:
    """What the sender says stands; else the name decides, else the first bytes."""
    put = alice.client.put

    def media_type(name: str, data: bytes, **headers: str) -> str:
        answer = put("/v1/files", params={"name": name}, content=data, headers=headers)
        return str(answer.json()["media_type"])

    assert media_type("a.png", b"x", **{"Content-Type": "text/weird"}) == "text/weird"
    assert media_type("a.png", b"x") == "image/png"
    assert media_type("noname", b"\x89PNG\r\n\x1a\n" + bytes(20)) == "image/png"
    assert media_type("noname", b"plain words\n") == "text/plain"
    assert media_type("noname", bytes(range(256))) == "application/octet-stream"
    curl = {"Content-Type": "application/x-www-form-urlencoded"}
    assert media_type("a.json", b"{}", **curl) == "application/json"


def test_headers_of_content(alice: Account) -> None:
    """Users' bytes are sandboxed and not sniffed, whatever they are."""
    html = b"<script>alert(document.cookie)</script>"
    file = alice.client.post("/v1/files", files={"file": ("x.html", html, "text/html")}).json()
    answer = alice.client.get(f"/v1/files/{file['id']}/content")
    assert answer.headers["content-type"] == "text/html"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert "sandbox" in policy
    assert "allow-same-origin" not in policy
    assert "allow-scripts" not in policy
    assert answer.headers["etag"] == f'"{file["cid"]}"'
    head = alice.client.head(f"/v1/files/{file['id']}/content")
    assert head.content == b""
    same = ("etag", "content-length", "content-type", "content-disposition", "accept-ranges")
    assert [head.headers[name] for name in same] == [answer.headers[name] for name in same]


def test_ranges_and_conditions(alice: Account) -> None:
    """206, 304, 412 and 416 as RFC 9110 says; each range is a slice of the plaintext."""
    data = os.urandom(2 * MIB + 100)
    file = alice.upload(data)
    url = f"/v1/files/{file['id']}/content"
    etag = f'"{file["cid"]}"'

    def get(**headers: str) -> httpx.Response:
        return alice.client.get(url, headers={k.replace("_", "-"): v for k, v in headers.items()})

    for first, last in [(0, 0), (0, MIB), (MIB - 1, MIB), (MIB, 2 * MIB), (len(data) - 1, None)]:
        answer = get(Range=f"bytes={first}-{'' if last is None else last}")
        end = len(data) - 1 if last is None else last
        assert answer.status_code == 206
        assert answer.headers["content-range"] == f"bytes {first}-{end}/{len(data)}"
        assert answer.content == data[first : end + 1]
    assert get(Range="bytes=-7").content == data[-7:]
    assert get(Range="bytes=5-", If_Range=etag).status_code == 206
    assert get(Range="bytes=5-", If_Range='"other"').status_code == 200
    assert get(If_None_Match=f'"x", W/{etag}').status_code == 304
    assert get(If_Match='"x"').status_code == 412
    over = get(Range=f"bytes={len(data)}-")
    assert over.status_code == 416
    assert over.headers["content-range"] == f"bytes */{len(data)}"


def test_same_bytes_twice_are_two_files_and_one_content(
    server: Server, alice: Account, bob: Account
) -> None:
    """Each user is charged once; deleting one file leaves the others readable."""
    data = os.urandom(1000)
    first, second = alice.upload(data, "one"), alice.upload(data, "two")
    other = bob.upload(data, "three")
    assert first["cid"] == second["cid"] == other["cid"]
    assert first["id"] != second["id"]
    usage = alice.client.get("/v1/users/me/usage").json()
    assert usage["storage"]["bytes"] == 1000
    assert alice.client.delete(f"/v1/files/{first['id']}").status_code == 204
    assert alice.client.get(f"/v1/files/{first['id']}").status_code == 404
    assert alice.client.get(f"/v1/files/{second['id']}/content").content == data
    assert alice.client.get("/v1/users/me/usage").json()["storage"]["bytes"] == 1000
    alice.client.delete(f"/v1/files/{second['id']}")
    assert alice.client.get("/v1/users/me/usage").json()["storage"]["bytes"] == 0
    assert bob.client.get(f"/v1/files/{other['id']}/content").content == data


def test_change_name_and_meta(alice: Account) -> None:
    """What is left out stays; meta is replaced as a whole; nulls and unknown fields are refused."""
    file = alice.upload(HELLO, "old", meta='{"a": 1}')
    url = f"/v1/files/{file['id']}"
    changed = alice.client.patch(url, json={"name": "neu ü"}).json()
    assert (changed["name"], changed["meta"]) == ("neu ü", {"a": 1})
    changed = alice.client.patch(url, json={"meta": {"b": [1, {"c": None}]}}).json()
    assert (changed["name"], changed["meta"]) == ("neu ü", {"b": [1, {"c": None}]})
    assert alice.client.get(url).json() == changed
    assert alice.client.patch(url, json={}).json() == changed
    deep: object = 1
    for _ in range(20):
        deep = [deep]
    for wrong in (
        {"name": None},
        {"name": ""},
        {"name": "x" * 256},
        {"name": "a\nb"},
        {"size": 3},
        {"meta": None},
        {"meta": {"a": deep}},
        {"meta": {"a": "x" * 20_000}},
    ):
        answer = alice.client.patch(url, json=wrong)
        assert answer.status_code == 400, wrong
    raw = alice.client.patch(
        url, content=b'{"name": "\\ud800"}', headers={"Content-Type": "application/json"}
    )
    assert raw.status_code == 400
    assert alice.client.get(url).json() == changed


def test_list_filters_and_walks(alice: Account) -> None:
    """Filters narrow, `before` walks without losing a file, limits are bounded."""
    for number in range(7):
        alice.upload(f"content {number % 3}".encode(), f"Name {number}_%.txt")
    everything = alice.client.get("/v1/files").json()
    assert everything["count"] == 7
    seen: list[str] = []
    before = None
    while True:
        page = alice.client.get(
            "/v1/files", params={"limit": 3} | ({"before": before} if before else {})
        ).json()
        seen += [item["id"] for item in page["items"]]
        if page["count"] == len(page["items"]):
            break
        before = page["items"][-1]["created_at"]
    assert seen == [item["id"] for item in everything["items"]]

    def count(**query: str) -> int:
        return int(alice.client.get("/v1/files", params=query).json()["count"])

    assert count(name="Name 3_%.txt") == 1
    assert count(name_contains="NAME") == 7
    assert count(name_contains="_%") == 7
    assert count(name_contains="%x") == 0
    assert count(cid=everything["items"][0]["cid"]) == 3
    assert count(visibility="private") == 0
    assert count(media_type="text/plain") == 7
    assert count(after=everything["items"][0]["created_at"]) == 0
    assert count(before="9999-12-31T23:59:59Z", after="0001-01-01T00:00:00Z") == 7
    for wrong in (
        {"limit": 0},
        {"limit": 1001},
        {"before": "yesterday"},
        {"before": "0001-01-01T00:00:00+01:00"},
        {"after": "9999-12-31T23:59:59-01:00"},
        {"cid": "no"},
        {"name": "\x00"},
    ):
        assert alice.client.get("/v1/files", params=wrong).status_code == 400, wrong


def test_a_cut_upload_leaves_no_record(server: Server, alice: Account) -> None:
    """Fewer bytes than announced: the client is gone, no file, no charge."""
    url = server.url.removeprefix("http://")
    host, port = url.split(":")
    import socket

    for path, headers in (
        ("/v1/files?name=cut", "Content-Length: 3000000\r\n"),
        ("/v1/files?name=cut", "Transfer-Encoding: chunked\r\n"),
    ):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                f"PUT {path} HTTP/1.1\r\nHost: {url}\r\nAuthorization: Bearer {alice.key}\r\n"
                f"{headers}\r\n".encode()
            )
            connection.sendall(b"100000\r\n" if "chunked" in headers else b"")
            connection.sendall(bytes(1_000_000))
    assert alice.client.get("/v1/files").json()["count"] == 0
    assert alice.client.get("/v1/users/me/usage").json()["storage"]["bytes"] == 0


def test_uploads_name_their_pins(server: Server, alice: Account) -> None:
    """The node's pin carries the deployment and the upload, so that orphans can be told."""
    cid = alice.upload(os.urandom(100))["cid"]
    ipfs = server.settings.ipfs
    assert ipfs.rpc_auth is not None
    answer = httpx.post(
        f"{ipfs.rpc_url}/api/v0/pin/ls",
        params={"type": "recursive", "names": "true", "arg": str(cid)},
        headers={"Authorization": ipfs.rpc_auth.get_secret_value().replace("bearer:", "Bearer ")},
        verify=NO_TLS,
        trust_env=False,
    )
    name = answer.json()["Keys"][cid]["Name"]
    assert name.startswith("on-api/")
    assert len(name.split("/")) == 3


def test_names_are_found_however_their_letters_are_composed(alice: Account) -> None:
    """A Mac writes é as e and an accent (NFD), a keyboard types one letter (NFC); each finds the
    other's, in both versions, and every name stays as it was given."""
    name = "Éléphant 地図 が.txt"
    composed, decomposed = (normalize(form, name) for form in ("NFC", "NFD"))
    assert composed != decomposed
    alice.upload(b"1", composed)
    alice.upload(b"2", decomposed)
    alice.upload(b"3", "Elephant 地図 か.txt")
    for version in ("v1", "v2"):
        for typed in (composed, decomposed):
            for filters in (
                {"name": typed},
                {"name_contains": typed[3:-3]},
                {"name_contains": normalize("NFC", typed)[0].lower()},
            ):
                found = alice.client.get(f"/{version}/files", params=filters).json()["items"]
                assert [file["name"] for file in found] == [decomposed, composed], filters
