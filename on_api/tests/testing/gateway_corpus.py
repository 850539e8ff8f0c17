"""Content of every kind on a node, and a client that sends requests to gateways byte for byte."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import httpx

from on_api.core.ipfs.formats.cid import ADD_OPTIONS, SHA2_256, Cid
from on_api.tests.conftest import RPC_SECRET, Kubo
from on_api.tests.testing.blockstore import Blockstore
from on_api.tests.testing.plain_http import NO_TLS

MIB = 1024 * 1024
HAMT_ENTRIES = 10_000
DAG_JSON, DAG_CBOR, JSON, CBOR = 0x0129, 0x71, 0x0200, 0x51

FILES = {
    "a.txt": b"hello\n",
    "100%25.txt": b"a percent sign, twice in its name",
    "a+b c.txt": b"plus and blank",
    "地図 üñí.txt": b"unicode",
    "empty": b"",
    "page.html": b"<!doctype html><h1>a page</h1>",
    "picture.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "sub/index.html": b"<h1>the index of sub</h1>",
    "sub/deep/x": b"deep",
    "listing/y": b"y",
    "joined.bin": random.Random(1).randbytes(64 * 1024),
    "hot.bin": random.Random(2).randbytes(300_000),
    "big.bin": random.Random(3).randbytes(3 * MIB + 17),
}


@dataclass(frozen=True)
class Answer:
    """A complete answer."""

    status: int
    headers: dict[str, str]
    """Headers by name in lower case; repeated ones are joined by commas."""
    body: bytes


class Corpus:
    """Content on a node: the CIDs of its roots."""

    def __init__(self, kubo: Kubo) -> None:
        self.folder = _add(kubo, {f"r/{name}": data for name, data in FILES.items()}, "r")
        many = {f"r/{number:05d}": b"x" for number in range(HAMT_ENTRIES)}
        self.hamt = _add(kubo, many, "r")
        self.raw = _add(kubo, {"r": FILES["joined.bin"]}, "r")
        blocks = Blockstore(kubo.home / "ipfs")
        named = {"link": {"/": self.folder}, "name": "something"}
        self.dag_json = _put(blocks, DAG_JSON, json.dumps(named, separators=(",", ":")).encode())
        self.json = _put(blocks, JSON, b'{"plain": true}')
        # {"link": 42(h'00' + CID), "n": 1}
        link = b"\x00" + Cid.from_text(self.folder).raw
        cbor = b"\xa2\x61n\x01\x64link\xd8\x2a\x58" + bytes([len(link)]) + link
        self.dag_cbor = _put(blocks, DAG_CBOR, cbor)
        self.cbor = _put(blocks, CBOR, b"\xa1\x61n\x01")

    def path(self, name: str) -> str:
        """Return the gateway path of a file in the folder."""
        return f"/ipfs/{self.folder}/{quote(name)}"


class RawClient:
    """One connection, which sends each request target exactly as it is given."""

    def __init__(self, origin: str) -> None:
        place = urlsplit(origin)
        self._connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=60)

    def __call__(
        self, target: str, headers: Mapping[str, str] | None = None, method: str = "GET"
    ) -> Answer:
        """Send one request. Raises `http.client.HTTPException` if the answer is cut."""
        connection = self._connection
        try:
            connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            body = response.read()
        except Exception:
            connection.close()
            raise
        joined: dict[str, str] = {}
        for name, value in response.getheaders():
            name = name.lower()
            joined[name] = f"{joined[name]}, {value}" if name in joined else value
        if response.will_close:
            connection.close()
        return Answer(response.status, joined, body)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def raw_client(origin: str) -> Iterator[RawClient]:
    """Open a client, and close it when the block ends."""
    client = RawClient(origin)
    try:
        yield client
    finally:
        client.close()


def add_folder(kubo: Kubo, files: Mapping[str, bytes]) -> str:
    """Add a folder of these files to the node, unpinned, and return its CID."""
    return _add(kubo, {f"r/{name}": data for name, data in files.items()}, "r")


def _add(kubo: Kubo, files: Mapping[str, bytes], root: str) -> str:
    """Run `add` for these paths, unpinned; return the CID of the one named `root`."""
    boundary = "between-the-files"
    body = b"".join(
        f"--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Disposition:"
        f' form-data; name="file"; filename="{quote(name, safe="")}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in files.items()
    )
    answer = httpx.post(
        f"{kubo.ipfs.rpc_url}/api/v0/add",
        params={**ADD_OPTIONS, "pin": "false", "progress": "false"},
        content=body + f"--{boundary}--\r\n".encode(),
        headers={
            "Authorization": f"Bearer {RPC_SECRET.removeprefix('bearer:')}",
            "Content-Type": f"multipart/form-data; boundary={boundary}",
        },
        timeout=60,
        verify=NO_TLS,
        trust_env=False,
    ).raise_for_status()
    added = {one["Name"]: one["Hash"] for one in map(json.loads, answer.text.splitlines())}
    return str(added[root])


def _put(blocks: Blockstore, codec: int, block: bytes) -> str:
    cid = str(Cid(codec, SHA2_256, hashlib.sha256(block).digest()))
    blocks.put(cid, block)
    return cid
