"""What private files promise beyond their API: the node knows nothing, no damage passes for the
file, little is read for a part, and many at once stay within bounds."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from on_api.core.crypto.age import CHUNK_BYTES, X25519Identity
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.server_settings import AuthSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import FAST_SCRYPT, Account, DatabaseMaker, Kubo, Server
from on_api.tests.testing.plain_http import NO_TLS
from on_api.tests.v1.test_private_files import (
    HEADER,
    PASSPHRASE,
    content,
    export,
    private,
    with_passphrase,
)

MIB = 1024 * 1024


class _Everything(logging.Handler):
    """Whatever is logged, at any level, with all that belongs to it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(("httpx", "httpcore")):  # the tests' own client
            self.lines.append(f"{self.format(record)} {record.__dict__}")


@contextmanager
def every_log() -> Iterator[list[str]]:
    """All loggers, wide open."""
    root, handler = logging.getLogger(), _Everything()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield handler.lines
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


def test_the_node_and_the_logs_know_nothing(server: Server, alice: Account, kubo: Kubo) -> None:
    """Known words of text, names, meta, passphrases and identities: in no block, no pin's name, no
    log. (A public file's are found, so that the search is known to find.)"""
    mark = os.urandom(8).hex()
    text = f"the plaintext {mark} ".encode() * 5000
    passphrase, theirs = f"passphrase {mark}", X25519Identity.generate()
    name, meta = f"name {mark}.txt", f'{{"meta": "meta {mark}"}}'
    with every_log() as lines:
        alice.upload(f"a public file {mark}".encode(), f"public {mark}")
        private(alice, text, name, meta=meta, recipients=str(theirs.recipient))
        file = with_passphrase(alice, text, passphrase).json()
        alice.client.post(
            "/v1/files?visibility=private", data={"meta": meta}, files={"file": (name, text)}
        )
        content(alice, file, On_Api_Passphrase=passphrase)
        content(alice, file, On_Api_Passphrase=f"wrong {mark}")
        content(alice, file)
        alice.client.post("/v1/users/me/identity/import", json={"identity": theirs.export()})
        secret = str(export(server, alice)["identity"])
    said = "\n".join(lines)
    for word in (mark, secret, theirs.export()):
        assert word not in said
    assert f"/v1/files/{file['id']}/content" in said

    ipfs = server.settings.ipfs
    assert ipfs.rpc_auth is not None
    answer = httpx.post(
        f"{ipfs.rpc_url}/api/v0/pin/ls",
        params={"type": "recursive", "names": "true"},
        headers={"Authorization": ipfs.rpc_auth.get_secret_value().replace("bearer:", "Bearer ")},
        verify=NO_TLS,
        trust_env=False,
    )
    assert mark not in answer.text
    words = [f"{what} {mark}".encode() for what in ("the plaintext", "name", "meta", "passphrase")]
    words += [secret.encode(), theirs.export().encode(), theirs.secret]
    found, searched = set(), 0
    for path in kubo.home.rglob("*"):
        if path.is_file() and "keystore" not in path.parts:
            data = path.read_bytes()
            searched += 1
            found |= {word for word in [*words, f"a public file {mark}".encode()] if word in data}
    assert searched > 10
    assert found == {f"a public file {mark}".encode()}


def block_path(kubo: Kubo, cid: str) -> Path:
    """The file in which the node keeps a block of CIDv1 (flatfs: the multihash in base32)."""
    name = base64.b32encode(Cid.from_text(cid).raw[2:]).decode().rstrip("=")
    (path,) = (kubo.home / "ipfs" / "blocks").rglob(f"{name}.data")
    return path


def test_one_flipped_bit(alice: Account, kubo: Kubo) -> None:
    """Anywhere in the age file: its own bytes or an error, whole or in parts, never others."""
    data = random.Random(2).randbytes(6 * CHUNK_BYTES + 1000)
    file = private(alice, data)
    path = block_path(kubo, str(file["cid"]))
    good = path.read_bytes()
    start = len(good) - len(data) - 7 * 16
    whole, refused = range(len(data)), 0
    for position in (5, start - 20, start, start + CHUNK_BYTES, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        path.chmod(0o600)
        path.write_bytes(bad)
        chunk = (position - start) // (CHUNK_BYTES + 16)
        for wanted in (whole, range(10), range(3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 9), whole[-9:]):
            hit = (
                position >= start and wanted[0] // CHUNK_BYTES <= chunk <= wanted[-1] // CHUNK_BYTES
            )
            status, received = _received(alice, file, wanted)
            refused += hit
            # Where good chunks come before the damaged one, they may be out already.
            assert status == (206 if received or not hit else 502)
            assert received == data[wanted[0] : wanted[0] + len(received)]
            assert (len(received) < len(wanted)) == hit
    path.write_bytes(good)
    assert refused > 5
    assert content(alice, file).content == data


def _received(account: Account, file: dict[str, object], wanted: range) -> tuple[int, bytes]:
    """The status of a range, and what came of it before its end or a cut."""
    received = b""
    headers = {"Range": f"bytes={wanted[0]}-{wanted[-1]}"}
    with account.client.stream("GET", f"/v1/files/{file['id']}/content", headers=headers) as answer:
        if answer.status_code == 206:
            with suppress(httpx.RemoteProtocolError):
                for chunk in answer.iter_bytes():
                    received += chunk
        elif answer.status_code == 502:
            assert answer.read()
            assert answer.json()["error"]["reason"] == "CONTENT_DAMAGED"
    return answer.status_code, received


def test_damage_behind_the_first_bytes(server: Server, alice: Account, kubo: Kubo) -> None:
    """The answer has begun: it is cut, visibly, before the first wrong byte."""
    data = random.Random(3).randbytes(5 * MIB)
    file = private(alice, data)
    raw = content(alice, file, "?raw=1").content
    import hashlib

    from on_api.core.ipfs.formats.cid import raw_leaf_cid

    leaf = raw_leaf_cid(hashlib.sha256(raw[4 * MIB : 5 * MIB]).digest())
    path = block_path(kubo, leaf)
    bad = bytearray(path.read_bytes())
    bad[1000] ^= 1
    path.chmod(0o600)
    path.write_bytes(bad)
    received = b""
    with alice.client.stream("GET", f"/v1/files/{file['id']}/content") as answer:
        assert answer.status_code == 200
        chunks = answer.iter_bytes()
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 (whichever of them it is)
            while chunk := next(chunks):
                received += chunk
    assert received == data[: len(received)]
    assert 2 * MIB < len(received) <= 4 * MIB


@pytest.mark.parametrize("size", [64 * MIB, pytest.param(1024 * MIB, marks=pytest.mark.soak)])
def test_a_part_reads_little(
    server: Server, alice: Account, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Of the node: less than a MiB for the end of a large file."""
    piece = random.Random(4).randbytes(MIB)
    answer = alice.client.put(
        "/v1/files?name=x&visibility=private", content=(piece for _ in range(size // MIB))
    )
    assert answer.status_code == 201, answer.text
    asked: list[int] = []
    read = server.services.node.read

    def counted(
        cid: str, *, offset: int, length: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        asked.append(length)
        return read(cid, offset=offset, length=length)

    monkeypatch.setattr(server.services.node, "read", counted)
    for first, last in ((size - 10, size - 1), (size // 2 + 5, size // 2 + 14), (0, 9)):
        part = content(alice, answer.json(), Range=f"bytes={first}-{last}")
        assert part.content == piece[first % MIB :][:10]
    assert 0 < sum(asked) < MIB


def test_quota_counts_what_the_node_keeps(alice: Account, admin: Account) -> None:
    """To the byte: the sealed size fits, one less doesn't, whether its length is told or not."""
    data = os.urandom(100_000)
    file = private(alice, data)
    stored = int(content(alice, file, "?raw=1").headers["content-length"])
    assert stored > len(data)
    assert alice.client.get("/v1/users/me/usage").json()["storage"]["bytes"] == stored

    def upload(quota: int, *, told: bool) -> int:
        admin.client.patch(f"/v1/users/{alice.id}", json={"storage_quota": quota})
        body = data if told else iter([data])
        url = "/v1/files?name=x&visibility=private"
        return alice.client.put(url, content=body).status_code

    for told in (True, False):
        assert upload(2 * stored - 1, told=told) == 403
    assert upload(2 * stored, told=True) == 201
    assert upload(3 * stored, told=False) == 201
    key = alice.make_key("files:write", max_bytes=stored)
    with httpx.Client(base_url=alice.client.base_url, verify=NO_TLS, trust_env=False) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        admin.client.patch(f"/v1/users/{alice.id}", json={"storage_quota": None})
        url = "/v1/files?name=x&visibility=private"
        assert client.put(url, content=data + b"x").status_code == 403
        assert client.put(url, content=data).status_code == 201
        for nothing in (b"", iter(())):
            assert client.put(url, content=nothing).status_code == 403


def test_idempotency(alice: Account) -> None:
    """A repeat with the same key is one file; another audience or passphrase is another request."""

    def put(key: str, passphrase: str | None = None, **query: str) -> httpx.Response:
        headers = {"Idempotency-Key": key}
        if passphrase is not None:
            headers[HEADER] = passphrase
        params = {"name": "x", "visibility": "private", **query}
        return alice.client.put("/v1/files", params=params, content=b"same", headers=headers)

    one, other = (str(X25519Identity.generate().recipient) for _ in range(2))
    narrow = {"recipients": one, "owner_access": "false"}
    for key, first, differing in (
        ("a", {}, [{"visibility": "public"}, {"recipients": one}, {"passphrase": "open sesame"}]),
        ("b", {"recipients": one}, [{"recipients": other}, narrow]),
        ("c", {"passphrase": "open sesame"}, [{"passphrase": "open sesame!"}, {}]),
    ):  # fmt: skip
        made = put(key, **first)
        assert made.status_code == 201, made.text
        again = put(key, **first)
        assert (again.status_code, again.json()) == (201, made.json())
        for query in differing:
            assert put(key, **query).status_code == 409, (key, query)
    assert alice.client.get("/v1/files").json()["count"] == 3


class Peak:
    """The most memory that this process had while the block ran, over what it had before."""

    def __enter__(self) -> Peak:
        self._before = self._most = _resident()
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch)
        self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watching.join()
        self.bytes = self._most - self._before

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self._most = max(self._most, _resident())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.anyio
@pytest.mark.parametrize("size", [4 * MIB, pytest.param(32 * MIB, marks=pytest.mark.soak)])
async def test_many_uploads_at_once(server: Server, alice: Account, size: int) -> None:
    """64 private ones: a few blocks of a MiB each, whatever their size, and others are answered
    meanwhile. (Received, hashed, encrypted, on its way: some 8; the clients here have theirs.)"""
    piece = os.urandom(MIB)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size // MIB):
            yield piece

    done = asyncio.Event()
    async with _client(server, alice) as client:
        with Peak() as peak:
            watching = asyncio.create_task(_slowest_other(server, alice, done))
            answers = await asyncio.gather(
                *(
                    client.put(f"/v1/files?name={n}&visibility=private", content=body())
                    for n in range(64)
                )
            )
            done.set()
            assert await watching < 10
    assert {answer.status_code for answer in answers} == {201}
    assert peak.bytes < 64 * 12 * MIB


@pytest.mark.anyio
@pytest.mark.parametrize("log_n", [16, pytest.param(18, marks=pytest.mark.soak)])
async def test_many_passphrases_at_once(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings], log_n: int
) -> None:
    """20 downloads: scrypt's memory is that of one, all are served, others are answered."""
    cost = 128 * 8 * 2**log_n
    auth = AuthSettings(
        scrypt_log_n=FAST_SCRYPT, passphrase_log_n=log_n, scrypt_memory=max(cost, 32 * MIB)
    )
    with Server(settings_for(new_database(), auth=auth)) as server:
        alice = server.new_user()
        data = os.urandom(MIB)
        file = with_passphrase(alice, data).json()
        done = asyncio.Event()
        async with _client(server, alice) as client:
            url, headers = (
                f"/v1/files/{file['id']}/content",
                [(HEADER.encode(), PASSPHRASE.encode())],
            )
            with Peak() as peak:
                watching = asyncio.create_task(_slowest_other(server, alice, done))
                answers = await asyncio.gather(
                    *(client.get(url, headers=headers) for _ in range(20))
                )
                done.set()
                assert await watching < 10
        alice.client.close()
    assert [answer.content == data for answer in answers] == [True] * 20
    assert peak.bytes < cost + 20 * 8 * MIB


def _client(server: Server, account: Account) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=server.url,
        headers={"Authorization": f"Bearer {account.key}"},
        limits=httpx.Limits(max_connections=None),
        timeout=600,
        verify=NO_TLS,
        trust_env=False,
    )


async def _slowest_other(server: Server, account: Account, done: asyncio.Event) -> float:
    """Seconds of the slowest short request until told; there was one at least."""
    slowest = 0.0
    async with _client(server, account) as client:
        while True:
            answer = await client.get("/v1/users/me")
            assert answer.status_code == 200
            slowest = max(slowest, answer.elapsed.total_seconds())
            if done.is_set():
                return slowest
            await asyncio.sleep(0.05)  # the pace of whoever asks
