"""Imports as their users see them, CARs, and the way out."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from on_api.core.crypto.secrets import Keyring
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.models import Import, ImportItem, User
from on_api.core.models.database import utc_now
from on_api.core.providers.base import SourceSpec
from on_api.core.services.accounts.audit import COMMAND_LINE
from on_api.core.services.accounts.rotation import needed_versions, rotate_rows
from on_api.core.services.container import Services
from on_api.core.services.transfer.imports import ImportRequest
from on_api.core.services.upkeep.node import connect_node
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server
from on_api.tests.testing.blockstore import Blockstore
from on_api.tests.testing.deadline import until
from on_api.tests.testing.migration import ask, over, pins_of, previewed, report_of
from on_api.tests.testing.plain_http import NO_TLS
from on_api.worker.removal import remove_deleted_accounts

TOKEN = "a-token-that-nobody-may-see"
MIB = 1024 * 1024


def listed(*rows: tuple[str, str]) -> dict[str, str]:
    """A list of CIDs with names, as a source."""
    return {"kind": "cids", "text": "".join(f"{cid} {name}\n" for cid, name in rows)}


def test_a_list(alice: Account, bob: Account) -> None:
    """What is here becomes pins at once; what isn't is named, with the reason; started again it is
    tried again, and nothing else is."""
    here = str(alice.upload(os.urandom(500))["cid"])
    data = os.urandom(600)
    missing = build_file(data).cid
    source = listed((here, "地図"), ("no-cid", "x"), (missing, "later"), (here, "地図"))
    done = over(bob, ask(bob, source=source, start=True)["id"])
    assert (done["status"], done["total"], done["done"], done["failed"]) == ("done", 4, 2, 2)
    report = report_of(bob, done["id"])
    assert [item["status"] for item in report["items"]] == ["done", "failed", "failed", "skipped"]
    assert report["items"][0]["route"] == "local"
    assert "Line 2" in report["items"][1]["reason"]
    assert "no peers" in report["items"][2]["reason"]
    assert report["verdict"].startswith(
        "NOT everything was imported: 2 of 4 items are stored here. 2 failed"
    )
    assert missing in report["verdict"]
    alice.upload(data)
    assert bob.client.post(f"/v1/imports/{done['id']}/start").status_code == 202
    done = over(bob, done["id"])
    assert (done["status"], done["done"], done["failed"]) == ("done", 3, 1)
    assert sorted((pin.cid, pin.name) for pin in pins_of(bob)) == sorted(
        [(here, "地図"), (missing, "later")]
    )


def test_items_in_pages(alice: Account) -> None:
    """v1 by time, v2 by cursor, both by status: each item once."""
    cids = [build_file(os.urandom(20)).cid for _ in range(5)]
    here = str(alice.upload(b"here")["cid"])
    source = listed(*((cid, "n") for cid in cids), (here, "h"))
    import_id = over(alice, ask(alice, source=source, start=True)["id"])["id"]
    items = f"/v1/imports/{import_id}/items"
    first = alice.client.get(items, params={"limit": 4}).json()
    before = first["items"][-1]["created_at"]
    rest = alice.client.get(items, params={"limit": 4, "before": before}).json()
    assert (first["count"], rest["count"]) == (6, 2)
    seen = [item["position"] for item in first["items"] + rest["items"]]
    assert seen == [5, 4, 3, 2, 1, 0]
    failed = alice.client.get(items, params={"status": "failed"}).json()
    assert failed["count"] == 5
    page = alice.client.get(items.replace("v1", "v2"), params={"limit": 4}).json()
    cursor = {"limit": 4, "cursor": page["next_cursor"]}
    last = alice.client.get(items.replace("v1", "v2"), params=cursor).json()
    assert [item["position"] for item in page["items"] + last["items"]] == seen
    assert last["next_cursor"] is None
    assert alice.client.get("/v1/imports").json()["items"][0]["id"] == import_id
    assert alice.client.get("/v2/imports").json()["items"][0]["id"] == import_id


def test_the_report_as_csv(alice: Account) -> None:
    """Nothing in it is a formula; the last line is the verdict."""
    cid = str(alice.upload(b"calculate this")["cid"])
    import_id = over(alice, ask(alice, source=listed((cid, "=1+1")), start=True)["id"])["id"]
    answer = alice.client.get(f"/v1/imports/{import_id}/report", params={"format": "csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.reader(io.StringIO(answer.text)))
    assert dict(zip(rows[0], rows[1], strict=True))["name"] == "'=1+1"
    assert rows[-1][0] == "verdict"
    assert rows[-1][1].startswith(
        "Everything was imported and verified: 1 items, 1 blocks, 14 bytes"
    )
    assert pins_of(alice)[0].name == "=1+1"


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"source": {"kind": "pinning_api", "endpoint": "http://127.0.0.1:9", "token": TOKEN}},
         400, "ADDRESS_REFUSED"),
        ({"source": {"kind": "pinning_api", "endpoint": "https://10.0.0.1", "token": TOKEN}},
         400, "ADDRESS_REFUSED"),
        ({"source": {"kind": "kubo", "endpoint": "https://kubo.example"}},
         403, "INSUFFICIENT_SCOPE"),
        ({"source": {"kind": "cids", "text": "x"}, "route": "gateway"}, 400, "BAD_REQUEST"),
        ({"source": {"kind": "cids", "text": "x"}, "gateway_url": "http://192.168.0.1"},
         400, "ADDRESS_REFUSED"),
        ({"source": {"kind": "pinning_api", "token": TOKEN}}, 400, "BAD_REQUEST"),
        ({"source": {"kind": "pinning_api", "endpoint": 7, "token": {"a": TOKEN}}},
         400, "BAD_REQUEST"),
        ({"source": {"kind": "car", "path": "/etc/passwd"}}, 400, "BAD_REQUEST"),
        ({"source": {"kind": "cids", "path": "/etc/passwd"}}, 400, "BAD_REQUEST"),
        ({"source": {"kind": "cids", "text": "x"}, "route": "pigeon"}, 400, "BAD_REQUEST"),
    ],
)  # fmt: skip
def test_what_is_refused(alice: Account, body: dict[str, Any], status: int, reason: str) -> None:
    """At once, and without repeating what was sent."""
    answer = alice.client.post("/v1/imports", json=body)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (status, reason)
    assert TOKEN not in answer.text


def test_states(resting: Server, carol: Account) -> None:
    """What may follow what; credentials are sealed, never shown, and forgotten at the end."""
    source = {"kind": "pinning_api", "endpoint": "https://pins.example", "token": TOKEN}
    asked = ask(carol, source=source)
    url = f"/v1/imports/{asked['id']}"

    def post(action: str) -> tuple[int, str]:
        answer = carol.client.post(f"{url}/{action}")
        return answer.status_code, answer.json().get("status", "")

    def sealed() -> bytes | None:
        with resting.services.database.session_scope(write=False) as session:
            return session.get_one(Import, uuid.UUID(asked["id"])).secrets

    assert asked["source"] == {"kind": "pinning_api", "endpoint": "https://pins.example"}
    assert TOKEN.encode() not in (sealed() or b"none")
    assert post("pause") == (409, "")
    assert post("start") == (202, "running")
    assert post("start") == (202, "running")
    assert carol.client.delete(url).status_code == 409
    assert post("pause") == (202, "paused")
    assert post("start") == (202, "running")
    assert sealed() is not None
    assert post("cancel") == (202, "cancelled")
    assert sealed() is None
    assert post("cancel") == (202, "cancelled")
    assert post("start") == (409, "")  # its list was never read, and nobody knows the token now
    assert TOKEN not in carol.client.get(url).text + carol.client.get(f"{url}/report").text
    assert carol.client.delete(url).status_code == 204
    assert carol.client.get(url).status_code == 404


@contextmanager
def services_of(settings: Settings) -> Iterator[Services]:
    """What a process without a server has."""
    services = Services.build(settings, connect_node(settings))
    yield services
    asyncio.run(services.close())


def test_a_rotation_of_the_master_secret(
    settings_for: Callable[..., Settings], sqlite_database: DatabaseMaker
) -> None:
    """Credentials that are still needed are sealed anew with everything else."""
    old = settings_for(sqlite_database())
    new = settings_for(
        old.sqlalchemy_url,
        secret_key=SecretStr("another master secret, which comes after it"),
        previous_secret_keys=[old.secret_key],
    )
    keyring = Keyring.load(new)
    with services_of(old) as services:
        spec = SourceSpec("pinning_api", endpoint="https://pins.example", token=TOKEN)
        with services.database.session_scope() as session:
            user = services.users.create(session, "ada", None, COMMAND_LINE, is_admin=False)
            row = services.imports.create(session, user.id, ImportRequest(spec))
        assert rotate_rows(services.database, keyring, new).sealed_anew == 1
        with services.database.session_scope(write=False) as session:
            row = session.get_one(Import, row.id)
            assert needed_versions(session) == {keyring.version: 1}
    with services_of(new) as services:
        opened = services.imports.open_spec(row.id, row.secret_version or 0, row.secrets or b"")
        assert opened.token == TOKEN


def test_over_the_quota(server: Server, alice: Account, bob: Account) -> None:
    """Seen in the preview, before anything is moved; then told for each item."""
    small, large = (str(alice.upload(os.urandom(size))["cid"]) for size in (1000, 9000))
    with server.services.database.session_scope() as session:
        session.get_one(User, uuid.UUID(bob.id)).storage_quota = 5000
    asked = ask(bob, source=listed((large, "large"), (small, "small")))
    assert previewed(bob, asked["id"])["preview"]["quota_left"] == 5000
    assert bob.client.post(f"/v1/imports/{asked['id']}/start").status_code == 202
    done = over(bob, asked["id"])
    assert (done["done"], done["failed"]) == (1, 1)
    reasons = [item["reason"] for item in report_of(bob, done["id"])["items"]]
    assert reasons == ["The storage quota does not allow this item.", None]


def test_an_account_goes_with_its_imports(server: Server) -> None:
    """Items first, in pieces."""
    user = server.new_user()
    with user.client:
        source = listed(*((build_file(os.urandom(9)).cid, "x") for _ in range(3)))
        import_id = uuid.UUID(over(user, ask(user, source=source, start=True)["id"])["id"])
    database = server.services.database
    with database.session_scope() as session:
        session.get_one(User, uuid.UUID(user.id)).deleted_at = utc_now()
    remove_deleted_accounts(database)

    def gone() -> bool:
        with database.session_scope(write=False) as session:
            items = session.query(ImportItem).filter_by(import_id=import_id).count()
            return session.get(Import, import_id) is None and items == 0

    until(gone, "it is gone")


def test_out_and_in_again(alice: Account, bob: Account, kubo: Kubo) -> None:
    """All of an account as one CAR; taken in elsewhere, and with the list of names everything is as
    it was."""
    files = [alice.upload(os.urandom(size), f"名 {size}") for size in (10, 3 * MIB, 2000)]
    secret = alice.upload(b"a secret of alice", "secret", visibility="private")
    wanted = sorted([(str(f["cid"]), str(f["name"])) for f in [*files, secret]])
    car = alice.client.get("/v1/users/me/export")
    assert car.headers["content-type"] == "application/vnd.ipld.car; version=1"
    assert b"a secret of alice" not in car.content
    names = alice.client.get("/v1/users/me/export", params={"format": "pins"}).text

    asked = ask(bob, source={"kind": "car"}, start=True)
    assert asked["status"] == "draft"
    assert bob.client.post(f"/v1/imports/{asked['id']}/start").status_code == 409
    cut = bob.client.put(f"/v1/imports/{asked['id']}/car", content=car.content[:-1])
    assert (cut.status_code, cut.json()["error"]["reason"]) == (400, "BAD_CAR")
    taken = bob.client.put(
        f"/v1/imports/{asked['id']}/car", params={"name": "everything"}, content=car.content
    )
    assert taken.status_code == 200, taken.text
    assert (taken.json()["status"], taken.json()["done"]) == ("done", 1)
    root = car.headers["x-ipfs-roots"]
    assert [(pin.cid, pin.name) for pin in pins_of(bob)] == [(root, "everything")]
    again = bob.client.put(f"/v1/imports/{asked['id']}/car", content=car.content)
    assert again.status_code == 409

    done = over(bob, ask(bob, source={"kind": "cids", "text": names}, start=True)["id"])
    assert (done["status"], done["done"]) == ("done", 4)
    found = sorted((pin.cid, str(pin.name)) for pin in pins_of(bob) if pin.cid != root)
    assert found == wanted
    listed_there = httpx.get(
        f"{kubo.ipfs.gateway_url}/ipfs/{root}/{files[1]['cid']}", verify=NO_TLS, trust_env=False
    )
    assert len(listed_there.content) == 3 * MIB

    about = json.loads(alice.client.get("/v1/users/me/export?format=json").text)
    assert [(f["cid"], f["name"]) for f in about["files"]] == [
        (f["cid"], f["name"]) for f in [*files, secret]
    ]
    assert about["pins"] == about["shares"] == []


def test_an_export_with_a_hole_is_cut(alice: Account, kubo: Kubo) -> None:
    """It never passes for a whole one."""
    data = os.urandom(3 * MIB)
    alice.upload(data)
    blocks = Blockstore(kubo.home / "ipfs")
    leaf = [node.cid for node in build_file(data).walk()][-1]
    blocks.take(leaf)
    try:
        with pytest.raises(httpx.RemoteProtocolError):
            alice.client.get("/v1/users/me/export")
    finally:
        alice.upload(data, "again")
    assert blocks.has(leaf)
    assert alice.client.get("/v1/users/me/export").status_code == 200
