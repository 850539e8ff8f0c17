"""A rotation of the master secret beside processes that are up: nothing is sealed with the old one
afterwards, and nothing that they seal is lost."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from on_api.core.crypto.secrets import Keyring
from on_api.core.models import Database
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker, Kubo, make_settings
from on_api.tests.testing.processes import Home, beside, working

PASSWORD = "correct horse battery"
SEALED = ("identities", "idempotency_records", "keys")


@pytest.fixture
def home(tmp_path: Path, new_database: DatabaseMaker, kubo: Kubo) -> Home:
    """Beside the tests' node, on each kind of database."""
    (tmp_path / "home").mkdir(mode=0o700)
    return Home(tmp_path / "home", {"ON_API_DATABASE_URL": new_database(), **beside(kubo)})


def settings_of(home: Home, kubo: Kubo) -> Settings:
    """Its processes' settings."""
    return make_settings(
        home.path, home.extra["ON_API_DATABASE_URL"], secret_key=None, ipfs=kubo.ipfs
    )


def rotate(home: Home) -> dict[str, Any]:
    """`on-api keys rotate-master`, and what it says."""
    done = home.run("keys", "rotate-master", "--json")
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def make_ada(home: Home) -> None:
    """An account that logs in; and the administrator's key is ended: then no key is live."""
    done = home.run("users", "create", "ada", stdin=f"{PASSWORD}\n{PASSWORD}\n")
    assert done.returncode == 0, done.stderr
    listed = home.run("keys", "list", "--user", "admin", "--json")
    for key in json.loads(listed.stdout):
        assert home.run("keys", "revoke", "--user", "admin", key["id"]).returncode == 0


def log_in(home: Home) -> httpx.Client:
    """As ada, with a connection of one's own."""
    form = {"username": "ada", "password": PASSWORD}
    with home.client("") as nobody:
        nobody.headers.pop("Authorization")
        answer = nobody.post("/v1/auth/token", data=form)
    assert answer.status_code == 200, answer.text
    return home.client(answer.json()["access_token"])


def seal_everything(client: httpx.Client, word: str) -> dict[str, Any]:
    """One of each thing that is sealed."""
    once = {"Idempotency-Key": word}
    wanted = {"name": word, "scopes": ["files:read"]}
    made = client.post("/v1/keys", json=wanted, headers=once)
    turned = client.post("/v1/users/me/identity/rotate")
    private = client.put(f"/v1/files?name={word}&visibility=private", content=word.encode())
    for answer in (made, turned, private):
        assert answer.is_success, answer.text
    return {"key": made.json()["key"], "word": word, "file": private.json()["id"]}


def check_everything(home: Home, client: httpx.Client, sealed: dict[str, Any]) -> None:
    """What can be asked for still opens."""
    content = client.get(f"/v1/files/{sealed['file']}/content")
    assert (content.status_code, content.text) == (200, sealed["word"])
    with home.client(sealed["key"]) as other:
        assert other.get("/v1/files").status_code == 200


def sealed_by(settings: Settings) -> dict[str, set[int]]:
    """Which secrets the rows of each table belong to."""
    database = Database(settings)
    try:
        with database.session_scope(write=False) as session:
            return {
                table: set(
                    session.scalars(
                        text(f"SELECT secret_version FROM {table} WHERE secret_version > 0")  # noqa: S608
                    )
                )
                for table in SEALED
            }
    finally:
        database.dispose()


def test_what_a_running_server_seals_afterwards_is_not_lost(home: Home, kubo: Kubo) -> None:
    """Though no key was live, so that nothing needed the old secret; and a second rotation finds
    nothing to do."""
    home.init()
    make_ada(home)
    settings = settings_of(home, kubo)
    with home.serving():
        said = rotate(home)
        assert (said["secrets_left"], said["waiting_for"]) == (0, [])
        latest = Keyring.load(settings).version
        with log_in(home) as ada:
            sealed = seal_everything(ada, "diary")
        assert sealed_by(settings)["keys"] >= {latest}
        for table in ("identities", "idempotency_records"):
            assert sealed_by(settings)[table] == {latest}
    with home.serving(), log_in(home) as ada:
        check_everything(home, ada, sealed)


def test_rotated_under_load(home: Home, kubo: Kubo) -> None:
    """What is sealed at any moment of a rotation opens after it, in the same process and the
    next."""
    home.init()
    make_ada(home)
    with home.serving(), log_in(home) as ada, ThreadPoolExecutor(1) as beside_it:
        sealed = [seal_everything(ada, "0")]
        rotating = beside_it.submit(rotate, home)
        while not rotating.done():
            sealed.append(seal_everything(ada, str(len(sealed))))
        assert rotating.result()["waiting_for"] == []
        for each in sealed:
            check_everything(home, ada, each)
        again = rotate(home)  # every key has been used by now
        assert (again["sealed_anew"], again["secrets_left"]) == (0, 0)
    with home.serving(), log_in(home) as ada:
        for each in sealed:
            check_everything(home, ada, each)
    assert len(Keyring.load(settings_of(home, kubo)).versions) == 1


def test_two_commands_at_once_make_one_secret(home: Home, kubo: Kubo) -> None:
    """Neither writes over what the other has made and put into use."""
    home.init()
    make_ada(home)
    with home.serving():
        with log_in(home) as ada:
            sealed = seal_everything(ada, "before")
        with ThreadPoolExecutor(2) as both:
            list(both.map(lambda _: rotate(home), range(2)))
        with log_in(home) as ada:
            more = seal_everything(ada, "after")
    with home.serving(), log_in(home) as ada:
        check_everything(home, ada, sealed)
        check_everything(home, ada, more)


def test_several_processes(tmp_path: Path, postgres_database: DatabaseMaker, kubo: Kubo) -> None:
    """Two that serve and a worker by itself: each of them seals with the new secret."""
    (tmp_path / "home").mkdir(mode=0o700)
    url = postgres_database()
    extra = {"ON_API_DATABASE_URL": url, "ON_API_PROCESSES": "2", **beside(kubo)}
    home = Home(tmp_path / "home", extra)
    home.init()
    make_ada(home)
    settings = settings_of(home, kubo)
    with home.serving(), working(settings, 30):
        with log_in(home) as ada:
            sealed = seal_everything(ada, "before")
        assert rotate(home)["waiting_for"] == []
        for _ in range(8):  # connections are dealt out
            with log_in(home) as ada:
                ada.post("/v1/users/me/identity/rotate").raise_for_status()
        assert sealed_by(settings)["identities"] == {Keyring.load(settings).version}
    with home.serving(), log_in(home) as ada:
        check_everything(home, ada, sealed)


def test_the_environment_of_a_running_process_can_not_change(
    tmp_path: Path, postgres_database: DatabaseMaker, kubo: Kubo
) -> None:
    """Processes are restarted one after the other, each with the new secret first: until all have
    it, all go on with the old one and understand each other."""
    old, new = "the old one: " + "x" * 40, "the new one: " + "y" * 40
    url = postgres_database()
    homes = []
    for name, secrets in (
        ("first", {"ON_API_SECRET_KEY": old}),
        ("second", {"ON_API_SECRET_KEY": new, "ON_API_PREVIOUS_SECRET_KEYS": json.dumps([old])}),
    ):
        (tmp_path / name).mkdir(mode=0o700)
        extra = {"ON_API_DATABASE_URL": url, **beside(kubo), **secrets}
        homes.append(Home(tmp_path / name, extra))
    first, second = homes
    first.init()
    make_ada(first)
    with second.serving(), log_in(second) as ada:
        with first.serving():
            sealed = seal_everything(ada, "second")
            with first.client(sealed["key"]) as other:
                assert other.get("/v1/files").status_code == 200
        said = second.run("keys", "rotate-master")
        assert said.returncode == 0, said.stderr
        assert "2 keys have not been used since" in said.stdout
        check_everything(second, ada, sealed)
        assert (
            "remove them from ON_API_PREVIOUS_SECRET_KEYS"
            in second.run("keys", "rotate-master").stdout
        )
    settings = make_settings(second.path, url, secret_key=SecretStr(new), ipfs=kubo.ipfs)
    assert sealed_by(settings)["identities"] == {Keyring.load(settings).version}
    del second.extra["ON_API_PREVIOUS_SECRET_KEYS"]
    with second.serving(), log_in(second) as ada:
        check_everything(second, ada, sealed)
