"""A deployment to migrate from: an on-api whose user has pins of every kind."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from on_api.core.ipfs.formats.cid import ADD_OPTIONS
from on_api.tests.conftest import Account
from on_api.tests.testing.network import Peer
from on_api.tests.testing.plain_http import NO_TLS
from on_api.tests.worker.conftest import ended, pin

MIB = 1024 * 1024
NAMES = ("地図.pdf", "Größe 3 €.txt", "=SUM(A1)", 'a,b"c', "🦔", "عربى")


@dataclass(frozen=True)
class Pinned:
    """One pin of that deployment."""

    cid: str
    name: str | None
    meta: dict[str, str] | None


def fill(account: Account, peer: Peer, *, files: int, large: int) -> list[Pinned]:
    """Pin `files` small files, directories, a HAMT and one file of `large` bytes. Two more pins
    repeat content, one under the same name and one under another."""
    cids = peer.add_many([os.urandom(1000 + number) for number in range(files)])
    cids.append(add_folder(peer, {f"inner/{n}.txt": os.urandom(50) for n in range(5)}))
    cids.append(add_folder(peer, {f"{n}.txt": b"%d" % n for n in range(40)}, sharded=True))
    cids.append(peer.add(os.urandom(large), pinned=False))
    wanted = [
        Pinned(
            cid,
            None if number % 7 == 3 else f"{NAMES[number % len(NAMES)]} {number}",
            {"n": str(number), "ключ": "値"} if number % 2 else None,
        )
        for number, cid in enumerate(cids)
    ]
    wanted.append(Pinned(cids[0], wanted[0].name, wanted[0].meta))
    wanted.append(Pinned(cids[1], "the same under another name", None))
    ids = [
        pin(account, each.cid, **{k: v for k, v in vars_of(each).items() if v is not None})
        for each in wanted
    ]
    for pin_id in ids:
        assert ended(account, pin_id, 60)["status"] == "pinned"
    return wanted


def vars_of(pinned: Pinned) -> dict[str, Any]:
    """Return a pin's name and meta."""
    return {"name": pinned.name, "meta": pinned.meta}


def add_folder(peer: Peer, files: dict[str, bytes], *, sharded: bool = False) -> str:
    """Store a directory, unpinned, and return its CID. `sharded`: as a HAMT."""
    options = {**ADD_OPTIONS, "pin": "false", "progress": "false", "wrap-with-directory": "true"}
    if sharded:
        options["max-directory-links"] = "8"
    answer = httpx.post(
        f"{peer.ipfs.rpc_url}/api/v0/add",
        params=options,
        headers=peer.headers,
        files=[("file", (name, data)) for name, data in files.items()],
        timeout=60,
        verify=NO_TLS,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    rows = [json.loads(line) for line in answer.text.splitlines()]
    return str(next(row["Hash"] for row in rows if row["Name"] == ""))


def pins_of(account: Account) -> list[Pinned]:
    """Return every pin that a user sees."""
    answer = account.client.get("/v1/pins", params={"limit": 1000})
    assert answer.status_code == 200, answer.text
    assert answer.json()["count"] == len(answer.json()["results"])
    found = [each["pin"] for each in answer.json()["results"]]
    return [Pinned(each["cid"], each.get("name"), each.get("meta")) for each in found]


def ask(account: Account, **body: Any) -> dict[str, Any]:
    """Request an import, and return it."""
    answer = account.client.post("/v1/imports", json=body)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def look(account: Account, import_id: str) -> dict[str, Any]:
    """Return an import as its user sees it."""
    answer = account.client.get(f"/v1/imports/{import_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def over(account: Account, import_id: str, seconds: float = 60) -> dict[str, Any]:
    """Wait for the end of an import, and return it."""
    ends = {"done", "failed", "cancelled"}
    return _waited_for(account, import_id, seconds, lambda seen: seen["status"] in ends)


def previewed(account: Account, import_id: str, seconds: float = 30) -> dict[str, Any]:
    """Wait until the source's list was read, and return the import."""
    return _waited_for(account, import_id, seconds, lambda seen: seen["preview"]["complete"])


def _waited_for(
    account: Account, import_id: str, seconds: float, is_so: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Poll with pauses, as a client does: polling without them would take processor time from the
    work that is awaited."""
    ends_at = time.monotonic() + seconds
    while not is_so(seen := look(account, import_id)):
        assert time.monotonic() < ends_at, report_of(account, import_id)
        time.sleep(0.1)
    return seen


def report_of(account: Account, import_id: str) -> dict[str, Any]:
    """Return an import's report."""
    answer = account.client.get(f"/v1/imports/{import_id}/report")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def facts_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a report that don't depend on how the work went."""
    kept = ("position", "status", "cid", "name", "size", "bytes", "blocks", "verified", "reason")
    return [{name: item[name] for name in kept} for item in report["items"]]
