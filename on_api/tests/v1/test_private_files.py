"""Private files: what their owner sends comes back, and nobody else can read it."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from on_api.core.crypto.age import CHUNK_BYTES, Decryptor, X25519Identity
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.setting_groups import FilesSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import PASSWORD, Account, DatabaseMaker, Server

MIB = 1024 * 1024
SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, MIB, 3 * MIB + 7]
PASSPHRASE = "open sesame, 密码"
HEADER = "On-Api-Passphrase"


def private(
    account: Account, data: bytes, name: str = "secret.txt", **query: str
) -> dict[str, object]:
    """A private file, by PUT."""
    return account.upload(data, name, visibility="private", **query)


def with_passphrase(account: Account, data: bytes, passphrase: str = PASSPHRASE) -> httpx.Response:
    """An upload with a passphrase."""
    return account.client.put(
        "/v1/files",
        params={"name": "secret.txt", "visibility": "private"},
        content=data,
        headers={HEADER.encode(): passphrase.encode()},
    )


def content(
    account: Account, file: dict[str, object], query: str = "", **headers: str
) -> httpx.Response:
    """The file's bytes."""
    named = {k.replace("_", "-").encode(): v.encode() for k, v in headers.items()}
    return account.client.get(f"/v1/files/{file['id']}/content{query}", headers=named)


def log_in(server: Server, account: Account) -> httpx.Client:
    """A client with a password login's token."""
    form = {"username": account.username, "password": PASSWORD}
    with server.client() as client:
        answer = client.post("/v1/auth/token", data=form)
    assert answer.status_code == 200, answer.text
    return server.client(answer.json()["access_token"])


def export(server: Server, account: Account) -> dict[str, object]:
    """All identities of an account."""
    with log_in(server, account) as client:
        answer = client.post("/v1/users/me/identity/export", json={"password": PASSWORD})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def opened(age_file: bytes, *secrets: str) -> bytes:
    """The plaintext of an age file, by identities."""
    reader = Decryptor([X25519Identity.parse(secret) for secret in secrets])
    return bytes(reader.update(age_file) + reader.finish())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["put", "multipart by query", "multipart by field"])
def test_what_is_sent_comes_back(server: Server, alice: Account, size: int, way: str) -> None:
    """Size and hash are the plaintext's, the node has something else, which the exported identity
    opens."""
    data = os.urandom(size)
    if way == "put":
        file = private(alice, data)
    else:
        fields = {"visibility": "private"}
        options = {"params": fields} if "query" in way else {"data": fields}
        answer = alice.client.post("/v1/files", files={"file": ("secret.txt", data)}, **options)  # type: ignore[arg-type]
        assert answer.status_code == 201, answer.text
        file = answer.json()
    assert (file["size"], file["sha256"]) == (size, hashlib.sha256(data).hexdigest())
    assert (file["visibility"], file["gateway_url"]) == ("private", None)
    back = content(alice, file)
    assert back.content == data
    assert back.headers["content-length"] == str(size)
    assert back.headers["cache-control"] == "private, no-store"
    raw = content(alice, file, "?raw=1")
    assert build_file(raw.content).cid == file["cid"]
    assert raw.headers["content-type"] == "application/octet-stream"
    assert "secret.txt.age" in raw.headers["content-disposition"]
    assert raw.headers["etag"] != back.headers["etag"]
    assert opened(raw.content, str(export(server, alice)["identity"])) == data
    assert alice.client.get("/v1/users/me/usage").json()["storage"]["bytes"] >= len(raw.content)


def test_identical_private_files_share_nothing(alice: Account, bob: Account) -> None:
    """Not even those of one user."""
    data = os.urandom(1000)
    files = [private(alice, data), private(alice, data), private(bob, data)]
    assert len({file["cid"] for file in files} | {build_file(data).cid}) == 4
    assert [
        content(owner, file).content for owner, file in zip((alice, alice, bob), files, strict=True)
    ] == [data] * 3


def test_passphrase(alice: Account) -> None:
    """Given again to download: missing 400, wrong 403; it stands nowhere."""
    data = os.urandom(100_000)
    answer = with_passphrase(alice, data)
    assert answer.status_code == 201, answer.text
    file = answer.json()
    missing, wrong = content(alice, file), content(alice, file, On_Api_Passphrase="another one")
    assert (missing.status_code, missing.json()["error"]["reason"]) == (400, "PASSPHRASE_NEEDED")
    assert (wrong.status_code, wrong.json()["error"]["reason"]) == (403, "WRONG_PASSPHRASE")
    assert content(alice, file, On_Api_Passphrase=PASSPHRASE).content == data
    part = content(alice, file, On_Api_Passphrase=PASSPHRASE, Range="bytes=70000-70009")
    assert (part.status_code, part.content) == (206, data[70_000:70_010])
    assert content(alice, file, "?raw=1").content.startswith(b"age-encryption.org/v1\n-> scrypt ")
    assert alice.client.get("/v1/users/me/identities").json()["items"] == []


def test_recipients(server: Server, alice: Account) -> None:
    """Beside the owner, or instead: then the server has only the age file to give."""
    data, ours, theirs = os.urandom(200_000), X25519Identity.generate(), X25519Identity.generate()
    both = f"{ours.recipient}, {theirs.recipient}"
    file = private(alice, data, recipients=both)
    raw = content(alice, file, "?raw=1").content
    own = str(export(server, alice)["identity"])
    assert [opened(raw, secret) for secret in (ours.export(), theirs.export(), own)] == [data] * 3
    assert content(alice, file).content == data

    sealed = private(alice, data, recipients=both, owner_access="false")
    answer = content(alice, sealed)
    assert answer.content == content(alice, sealed, "?raw=1").content
    assert opened(answer.content, theirs.export()) == data
    assert "secret.txt.age" in answer.headers["content-disposition"]
    assert content(alice, sealed, Range="bytes=0-20").content == b"age-encryption.org/v1"

    fields = {"visibility": "private", "recipients": [str(ours.recipient), str(theirs.recipient)]}
    answer = alice.client.post("/v1/files", data=fields, files={"file": ("x", data)})
    assert opened(content(alice, answer.json(), "?raw=1").content, theirs.export()) == data


AGE1 = str(X25519Identity.generate().recipient)


@pytest.mark.parametrize(
    ("query", "headers", "reason"),
    [
        ({"recipients": AGE1}, {HEADER: PASSPHRASE}, "combined"),
        ({"owner_access": "true"}, {HEADER: PASSPHRASE}, "combined"),
        ({"owner_access": "false"}, {}, "nobody"),
        ({"recipients": "age1nobody"}, {}, "age1"),
        ({"recipients": ","}, {}, "recipients"),
        ({"recipients": ",".join([AGE1] * 51)}, {}, "50"),
        ({"owner_access": "perhaps"}, {}, "owner_access"),
        ({}, {HEADER: "short"}, "8 to 256"),
        ({"passphrase": PASSPHRASE}, {}, HEADER),
        ({}, {HEADER: "x" * 257}, "8 to 256"),
        ({"visibility": "public"}, {HEADER: PASSPHRASE}, "only allowed for private"),
        ({"visibility": "public", "recipients": AGE1}, {}, "only allowed for private"),
        ({"visibility": "public", "owner_access": "true"}, {}, "only allowed for private"),
    ],
)  # fmt: skip
def test_what_can_not_be(
    alice: Account, query: dict[str, str], headers: dict[str, str], reason: str
) -> None:
    """400 with the reason, on both ways."""
    query = {"visibility": "private", **query}
    raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
    for answer in (
        alice.client.put(
            "/v1/files?name=x", params={"name": "x", **query}, content=b"x", headers=raw_headers
        ),
        alice.client.post(
            "/v1/files", data=query, files={"file": ("x", b"x")}, headers=raw_headers
        ),
    ):
        assert answer.status_code == 400, answer.text
        assert reason in answer.json()["error"]["details"]
    assert alice.client.get("/v1/files").json()["count"] == 0


@pytest.mark.parametrize("field", ["visibility", "recipients", "owner_access"])
def test_how_to_encrypt_is_said_before_the_bytes(alice: Account, field: str) -> None:
    """A later field is refused, saying why."""
    value = {"visibility": "private", "recipients": AGE1, "owner_access": "true"}[field]
    answer = alice.client.post(
        "/v1/files?visibility=private",
        files=[("file", ("x", b"x")), (field, (None, value.encode()))],
    )
    assert answer.status_code == 400
    assert "precede the file" in answer.json()["error"]["details"]
    assert alice.client.get("/v1/files").json()["count"] == 0


def test_ranges_and_conditions(alice: Account) -> None:
    """206, 304, 412 and 416 as for public files, of plaintext and age file alike."""
    data = os.urandom(2 * MIB + 100)
    file = private(alice, data)
    raw = content(alice, file, "?raw=1").content
    for query, whole in (("", data), ("?raw=1", raw)):
        etag = content(alice, file, query).headers["etag"]
        assert content(alice, file, query, Range="bytes=-7").content == whole[-7:]
        assert content(alice, file, query, Range="bytes=5-", If_Range=etag).content == whole[5:]
        assert content(alice, file, query, Range="bytes=5-", If_Range='"other"').content == whole
        assert content(alice, file, query, If_None_Match=etag).status_code == 304
        assert content(alice, file, query, If_Match='"other"').status_code == 412
        over = content(alice, file, query, Range=f"bytes={len(whole)}-")
        assert over.status_code == 416
        assert over.headers["content-range"] == f"bytes */{len(whole)}"
        head = alice.client.head(f"/v1/files/{file['id']}/content{query}")
        got = content(alice, file, query)
        same = ("etag", "content-length", "content-type", "content-disposition", "cache-control")
        assert [head.headers[name] for name in same] == [got.headers[name] for name in same]


def test_random_ranges_are_slices(alice: Account) -> None:
    """Of a file of many chunks, wherever they begin and end."""
    data = random.Random(1).randbytes(5 * CHUNK_BYTES + 12_345)
    file = private(alice, data)
    edges = st.sampled_from([n * CHUNK_BYTES + d for n in range(6) for d in (-1, 0, 1)])
    positions = st.integers(0, len(data) - 1) | edges.filter(lambda n: 0 <= n < len(data))

    @settings(max_examples=60, deadline=None)
    @given(positions, positions)
    def check(one: int, other: int) -> None:
        first, last = sorted((one, other))
        answer = content(alice, file, Range=f"bytes={first}-{last}")
        assert answer.status_code == 206
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(data)}"
        assert answer.content == data[first : last + 1]

    check()


def test_private_by_default(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """Where the operator wants it so; whoever asks for public gets it. In version 2 too."""
    files = FilesSettings(default_visibility="private")
    with Server(settings_for(new_database(), files=files)) as server:
        account = server.new_user()
        with account.client as client:
            for version in ("v1", "v2"):
                made = client.post(f"/{version}/files", files={"file": ("x", b"bytes")}).json()
                assert made["visibility"] == "private"
                assert made["cid"] != build_file(b"bytes").cid
                url = f"/{version}/files/{made['id']}/content"
                assert client.get(url).content == b"bytes"
                made = client.put(f"/{version}/files?name=x&visibility=public", content=b"bytes")
                assert made.json()["cid"] == build_file(b"bytes").cid
            sealed = with_passphrase(account, b"bytes").json()
            answer = client.get(f"/v2/files/{sealed['id']}/content")
            assert (answer.status_code, answer.json()["code"]) == (400, "PASSPHRASE_NEEDED")
