"""Files of another on-api: nothing is called moved that can't be opened here, or that is not what
its source says; who brings the key later has it mended."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from sqlalchemy import select, update

from on_api.core.crypto.age import X25519Identity
from on_api.core.models import File, ImportItem
from on_api.core.models.file import FOR_RECIPIENTS
from on_api.core.models.imports import DONE
from on_api.core.setting_groups import ImportsSettings, WorkerSettings
from on_api.tests.conftest import PASSWORD, Account, DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.foreign import Asked, Reply, says, service
from on_api.tests.testing.migration import ask, over, report_of
from on_api.tests.worker.conftest import account_of

FINE = "Everything was imported and verified"


@pytest.fixture(scope="module")
def here(
    kubo: Kubo, new_database: DatabaseMaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Source and target in one: what an account has comes to another one."""
    settings = make_settings(
        tmp_path_factory.mktemp("keys"),
        new_database(),
        ipfs=kubo.ipfs,
        worker=WorkerSettings(poll=0.1),
        imports=ImportsSettings(allow_private=True),
    )
    with Server(settings) as running:
        yield running


@pytest.fixture
def ada(here: Server) -> Iterator[Account]:
    """Who leaves."""
    with account_of(here) as account:
        yield account


@pytest.fixture
def ben(here: Server) -> Iterator[Account]:
    """Who they are here."""
    with account_of(here) as account:
        yield account


def source(server: Server, account: Account, **more: object) -> dict[str, object]:
    """An account of an on-api."""
    return {"kind": "on_api", "endpoint": server.url, "token": account.key, **more}


def again(account: Account, import_id: str) -> dict[str, Any]:
    """Start an import once more, and wait for its end."""
    assert account.client.post(f"/v1/imports/{import_id}/start").status_code == 202
    return over(account, import_id)


def content(account: Account, name: str) -> bytes:
    """The one file of this name."""
    [file] = account.client.get("/v1/files", params={"name": name}).json()["items"]
    return bytes(account.client.get(f"/v1/files/{file['id']}/content").content)


def identities_of(account: Account) -> list[str]:
    """As their owner exports them."""
    login = {"username": account.username, "password": PASSWORD}
    granted = account.client.post("/v1/auth/token", data=login).json()
    answer = account.client.post(
        "/v1/users/me/identity/export",
        json={"password": PASSWORD},
        headers={"Authorization": f"Bearer {granted['access_token']}"},
    )
    assert answer.status_code == 200, answer.text
    return [each["identity"] for each in answer.json()["identities"]]


def by_password(server: Server, ada: Account, ben: Account, import_id: str) -> dict[str, Any]:
    """A new import, with the login at the source."""
    login = {"username": ada.username, "password": PASSWORD}
    return over(ben, ask(ben, source=source(server, ada, **login), start=True)["id"])


def by_identities(server: Server, ada: Account, ben: Account, import_id: str) -> dict[str, Any]:
    """A new import, with the identities."""
    keys = {"identities": identities_of(ada)}
    return over(ben, ask(ben, source=source(server, ada, **keys), start=True)["id"])


def by_own_import(server: Server, ada: Account, ben: Account, import_id: str) -> dict[str, Any]:
    """The identity brought by itself, and the same import once more."""
    for identity in identities_of(ada):
        answer = ben.client.post("/v1/users/me/identity/import", json={"identity": identity})
        assert answer.status_code == 200, answer.text
    return again(ben, import_id)


Bring = Callable[[Server, Account, Account, str], dict[str, Any]]


@pytest.mark.parametrize("bring", [by_password, by_identities, by_own_import])
@pytest.mark.parametrize("unrelated", [False, True])
def test_what_nobody_can_open_is_not_moved(
    here: Server, ada: Account, ben: Account, bring: Bring, unrelated: bool
) -> None:
    """Without its key, or with another one, however often it is started; with it, it is mended."""
    data = os.urandom(2000)
    ada.upload(data, "secret", visibility="private")
    ada.upload(b"known", "open")
    more = {"identities": [X25519Identity.generate().export()]} if unrelated else {}
    done = over(ben, ask(ben, source=source(here, ada, **more), start=True)["id"])
    for _ in range(2):
        report = report_of(ben, done["id"])
        assert (done["done"], done["failed"]) == (1, 1)
        assert report["verdict"].startswith("NOT everything was imported: 1 of 2"), report[
            "verdict"
        ]
        assert "private at the source" in report["verdict"]
        assert report["complete"] is False
        assert (report["totals"]["failed"], report["totals"]["verified"]) == (1, 1)
        [item] = [each for each in report["items"] if each["name"] == "secret"]
        assert (item["status"], item["verified"]) == ("failed", False)
        done = again(ben, done["id"])
    # It is here, closed: nothing has to come any more.
    assert content(ben, "secret").startswith(b"age-encryption.org/v1")
    mended = bring(here, ada, ben, done["id"])
    report = report_of(ben, mended["id"])
    assert report["verdict"].startswith(FINE), report["verdict"]
    assert report["complete"] is True
    assert content(ben, "secret") == data
    # The first one's report says what is now, when it is asked to look again.
    assert again(ben, done["id"])["failed"] == 0
    assert report_of(ben, done["id"])["verdict"].startswith(FINE)


def test_what_was_called_done_before(here: Server, ada: Account, ben: Account) -> None:
    """By a version that looked less closely: its report says otherwise, and a start mends it."""
    data = os.urandom(3000)
    ada.upload(data, "old", visibility="private")
    first = over(ben, ask(ben, source=source(here, ada), start=True)["id"])
    first = again(ben, first["id"])
    with here.services.database.session_scope() as session:
        mine = select(File.id).where(File.sealed_for == FOR_RECIPIENTS)
        session.execute(
            update(ImportItem)
            .where(ImportItem.file_id.in_(mine))
            .values(status=DONE, verified=True, reason=None)
        )
    report = report_of(ben, first["id"])
    assert not report["verdict"].startswith(FINE)
    assert report["totals"]["failed"] == 1
    by_password(here, ada, ben, first["id"])
    assert content(ben, "old") == data
    assert again(ben, first["id"])["done"] == 1
    assert report_of(ben, first["id"])["verdict"].startswith(FINE)


def test_what_a_public_file_of_the_same_bytes_is_not(
    here: Server, ada: Account, ben: Account
) -> None:
    """Here already is what is the same in all that its source says, not what has the same name."""
    data = os.urandom(1500)
    private = ada.upload(data, "p", visibility="private")
    raw = ada.client.get(f"/v1/files/{private['id']}/content", params={"raw": "1"}).content
    assert ben.upload(raw, "p")["cid"] == private["cid"]
    answer = ada.client.put(
        "/v1/files",
        params={"name": "d", "meta": '{"a": 1}'},
        content=b"described",
        headers={"Content-Type": "text/x-a"},
    )
    assert answer.status_code == 201, answer.text
    described = answer.json()
    assert described["media_type"] == "text/x-a"
    ben.upload(b"described", "d")
    done = by_password(here, ada, ben, "")
    assert (done["done"], done["skipped"], done["failed"]) == (2, 0, 0)
    files = ben.client.get("/v1/files").json()["items"]
    [opened] = [f for f in files if f["name"] == "p" and f["visibility"] == "private"]
    assert ben.client.get(f"/v1/files/{opened['id']}/content").content == data
    kept = [(f["meta"], f["media_type"]) for f in files if f["name"] == "d"]
    assert (described["meta"], described["media_type"]) in kept


def test_whose_keys_the_server_never_had(here: Server, ada: Account, ben: Account) -> None:
    """A passphrase can be compared by nobody, and is said to be so; others' keys open what only
    they open, and it is no success here."""
    others = X25519Identity.generate()
    form, word = {"visibility": "private"}, {"On-Api-Passphrase": "a long passphrase"}
    answer = ada.client.post(
        "/v1/files", data=form, files={"file": ("by word", b"said")}, headers=word
    )
    assert answer.status_code == 201, answer.text
    done = by_password(here, ada, ben, "")
    report = report_of(ben, done["id"])
    assert (done["done"], done["failed"]) == (1, 0)
    assert report["complete"] is True
    assert not report["verdict"].startswith(FINE)
    assert "passphrase" in report["verdict"]
    [file] = ben.client.get("/v1/files", params={"name": "by word"}).json()["items"]
    opened = ben.client.get(f"/v1/files/{file['id']}/content", headers=word)
    assert opened.content == b"said", opened.text
    form = {
        "visibility": "private",
        "owner_access": "false",
        "recipients": str(others.recipient),
    }
    answer = ada.client.post("/v1/files", data=form, files={"file": ("theirs", b"for them")})
    assert answer.status_code == 201, answer.text
    done = by_password(here, ada, ben, "")
    report = report_of(ben, done["id"])
    assert (done["done"], done["failed"]) == (1, 1)
    assert "other people's keys" in report["verdict"]
    keys = {"identities": [others.export()]}
    done = over(ben, ask(ben, source=source(here, ada, **keys), start=True)["id"])
    assert done["failed"] == 0
    assert content(ben, "theirs") == b"for them"


def test_what_went_meanwhile_is_not_here_already(here: Server, ada: Account, ben: Account) -> None:
    """A file that was found here and deleted before the import went on comes anew."""
    ada.upload(b"twice", "t")
    over(ben, ask(ben, source=source(here, ada), start=True)["id"])
    seen = ask(ben, source=source(here, ada))
    [file] = ben.client.get("/v1/files").json()["items"]
    ben.client.delete(f"/v1/files/{file['id']}")
    done = again(ben, seen["id"])
    assert (done["done"], done["skipped"]) == (1, 0)
    assert content(ben, "t") == b"twice"


def test_an_empty_list_is_not_everything(here: Server, ada: Account, ben: Account) -> None:
    """Nothing was moved, and that is said."""
    done = over(ben, ask(ben, source=source(here, ada), start=True)["id"])
    verdict = report_of(ben, done["id"])["verdict"]
    assert (done["status"], done["total"]) == ("done", 0)
    assert not verdict.startswith("Everything")
    assert "nothing" in verdict


LONG = b"0123456789"


@pytest.mark.parametrize(
    ("size", "sha256", "reason"),
    [
        (len(LONG) - 4, LONG[:-4], "10 bytes, but the source reports 6"),
        (0, b"", "10 bytes, but the source reports 0"),
        (len(LONG) + 1, LONG, "10 bytes, but the source reports 11"),
        (len(LONG), b"else", "hash"),
    ],
)
def test_a_source_that_lies(
    ben: Account, ada: Account, size: int, sha256: bytes, reason: str
) -> None:
    """Of a size or a hash: also where it has hashed a part that is there."""
    stored = ada.upload(LONG, "long")
    file = {
        "id": "1", "cid": stored["cid"], "name": "long", "size": size, "media_type": "text/plain",
        "sha256": hashlib.sha256(sha256).hexdigest(), "visibility": "public", "meta": {},
        "created_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip

    def answer(asked: Asked) -> Reply:
        if asked.path == "/v2/files":
            return says({"items": [file], "next_cursor": None})
        return says({"count": 0, "results": []})

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(service(answer)) as there,
    ):
        spec = {"kind": "on_api", "endpoint": there.url, "token": "t"}
        done = over(ben, ask(ben, source=spec, start=True)["id"])
    report = report_of(ben, done["id"])
    assert done["failed"] == 1, json.dumps(report)
    assert reason in report["verdict"]
    assert ben.client.get("/v1/files").json()["count"] == 0


def test_a_name_that_is_cut_is_told(ben: Account, ada: Account) -> None:
    """All is here but the end of its name, and that is no `everything`."""
    cid = str(ada.upload(b"named", "n")["cid"])
    listed = {"kind": "cids", "text": f"{cid} {'x' * 300}\n"}
    done = over(ben, ask(ben, source=listed, start=True)["id"])
    report = report_of(ben, done["id"])
    assert not report["verdict"].startswith(FINE), report["verdict"]
    assert "its name" in report["verdict"]
    assert "its name" in report["items"][0]["note"]
