"""Schemathesis makes requests of both documents, right and wrong ones: no answer is a 5xx, has a
status, a media type, a body or headers that the document doesn't tell of, or is 2xx without a key.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from on_api.core.ipfs.daemon.binary import inherited_environment
from on_api.core.models.revisions import PROJECT
from on_api.core.setting_groups import WorkerSettings
from on_api.tests.conftest import PASSWORD, DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.installed import python_packages

pytestmark = [
    pytest.mark.clients,
    # The first run installs what it needs.
    pytest.mark.timeout(600),
]

SCHEMATHESIS = "schemathesis==4.32.5"
MOST_SECONDS = 300
"""A run takes 40 on two free cores; how many requests it makes is bounded, and always the same."""
CONFIGURATION = Path(__file__).with_name("schemathesis")


@pytest.fixture
def quiet_server(sqlite_database: DatabaseMaker, kubo: Kubo, tmp_path: Path) -> Iterator[Server]:
    """A server that calls nobody: without a worker, imports and pins wait for ever."""
    settings = make_settings(
        tmp_path / "home",
        sqlite_database(),
        ipfs=kubo.ipfs,
        registration="open",
        worker=WorkerSettings(embedded=False),
    )
    with Server(settings) as running:
        yield running


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_answers_are_as_documented(quiet_server: Server, tmp_path: Path, version: str) -> None:
    """With the rights of an administrator who has logged in."""
    admin = quiet_server.new_user(admin=True)
    with admin.client as client:
        form = {"username": admin.username, "password": PASSWORD}
        key = client.post("/v1/auth/token", data=form).json()["access_token"]
    programs = python_packages("schemathesis", SCHEMATHESIS)
    environment = {
        "BASE": quiet_server.url,
        "KEY": key,
        "USER_ID": admin.id,
        "PYTHONPATH": str(CONFIGURATION),
    }
    done = subprocess.run(
        [
            str(programs / "schemathesis"),
            *("--config-file", str(CONFIGURATION / "schemathesis.toml")),
            *("run", str(PROJECT / "openapi" / f"{version}.json")),
        ],
        cwd=tmp_path,
        env=inherited_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=MOST_SECONDS,
    )
    assert done.returncode == 0, done.stdout
