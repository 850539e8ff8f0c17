"""The master secret replaced, lost, or another one: what is sealed stays readable, and what can't
be read is said."""

from __future__ import annotations

import shutil

from on_api.tests.conftest import Kubo
from on_api.tests.testing.processes import Home, beside


def test_a_rotation_beside_a_running_server(home: Home, kubo: Kubo) -> None:
    """Keys go on working in the process that was running and in the next one; the old secret goes
    when nothing needs it any more."""
    key = home.init()
    home.extra = beside(kubo)
    previous = home.path / "secret.key.previous"
    first = (home.path / "secret.key").read_text()
    with home.serving(), home.client(key) as client:
        sleeper = client.post("/v1/keys", json={"name": "s", "scopes": ["files:read"]}).json()
        once = {"Idempotency-Key": "once"}
        made = client.post("/v1/keys", json={"name": "k", "scopes": ["files:read"]}, headers=once)
        done = home.run("keys", "rotate-master", "--json")
        assert done.returncode == 0, done.stderr
        assert (home.path / "secret.key").read_text() != first
        assert previous.read_text() == first
        # The running process learns of it by itself, and what was sealed before opens still.
        assert client.get("/v1/users/me").status_code == 200
        again = client.post("/v1/keys", json={"name": "k", "scopes": ["files:read"]}, headers=once)
        assert again.json() == made.json()
        assert files_with(home, made.json()["key"]) == 200
    with home.serving(), home.client(key) as client:
        assert client.get("/v1/users/me").status_code == 200
        assert "1 keys" in home.run("keys", "rotate-master").stdout
        assert files_with(home, sleeper["key"]) == 200
        assert files_with(home, made.json()["key"]) == 200
        assert "was deleted" in home.run("keys", "rotate-master").stdout
        assert not previous.exists()
        assert client.get("/v1/users/me").status_code == 200


def test_without_its_master_secret_it_says_so(home: Home, kubo: Kubo) -> None:
    """It starts all the same: what is public needs no secret. Nobody makes another one in its
    place."""
    key = home.init()
    home.extra = beside(kubo)
    with home.serving(), home.client(key) as client:
        file = client.put("/v1/files?name=x", content=b"public").json()
    secret = home.path / "secret.key"
    shutil.move(secret, home.path / "backup")
    assert home.run("init").returncode == 0
    assert not secret.exists()
    with home.serving(is_ready=False), home.client(key) as client:
        assert client.get("/v1/users/me").status_code == 401
        readiness = client.get("/readyz")
        assert readiness.status_code == 503
        assert "master secret" in readiness.text
        gateway = f"{home.url}/ipfs/{file['cid']}"
        assert client.get(gateway, headers={"Authorization": ""}).content == b"public"
    assert "There is no master secret" in home.log()
    secret.write_text("another secret, long enough to be taken for one\n")
    with home.serving(is_ready=False), home.client(key) as client:
        assert client.get("/v1/users/me").status_code == 401
    assert "were encrypted with a different master secret" in home.log()
    assert "a different master secret" in home.run("doctor").stdout
    shutil.move(home.path / "backup", secret)
    with home.serving(), home.client(key) as client:
        assert client.get("/v1/users/me").status_code == 200


def files_with(home: Home, key: str) -> int:
    """How a list of files is answered to a key."""
    with home.client(key) as client:
        return client.get("/v1/files").status_code
