"""`on-api doctor` on each of the troubles that it knows, provoked for real."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from on_api.core.models.revisions import PROJECT
from on_api.core.services.upkeep import diagnosis
from on_api.core.services.upkeep.diagnosis import Severity, diagnose
from on_api.core.setting_groups import IpfsSettings, NodeSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker, Kubo, free_port
from on_api.tests.testing.faulty_node import faulty_node, says
from on_api.tests.testing.processes import Home


def findings(home: Home, **environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code, and the findings by name."""
    home.extra |= environment
    done = home.run("doctor", "--json")
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, {finding["name"]: finding for finding in json.loads(done.stdout)}


@pytest.fixture
def home(tmp_path: Path, initialised: Path) -> Home:
    """An initialised home, nothing running."""
    made = Home(tmp_path / "home", template=initialised)
    made.init()
    return made


def test_all_is_well_while_it_serves(home: Home) -> None:
    """Exit code 0, every finding ok."""
    with home.serving():
        code, found = findings(home)
    assert code == 0
    assert {finding["verdict"] for finding in found.values()} == {"ok"}


@pytest.mark.parametrize("damage", ["noise", "a page"])
def test_a_damaged_sqlite_file(home: Home, damage: str) -> None:
    """No file of SQLite's, or one with a broken page: a sentence, from every command."""
    path = home.path / "on-api.db"
    if damage == "noise":
        path.write_bytes(os.urandom(20_000))
    else:
        data = bytearray(path.read_bytes())
        data[100:4096] = os.urandom(3996)
        path.write_bytes(data)
    for name in ("on-api.db-wal", "on-api.db-shm"):
        (home.path / name).unlink(missing_ok=True)
    code, found = findings(home)
    assert code == 1
    assert "damaged" in found["database"]["details"]
    for command in (["serve"], ["users", "list"], ["init"]):
        done = home.run(*command)
        assert done.returncode == 1
        assert "damaged" in done.stderr
        assert "Traceback" not in done.stderr


def test_what_is_missing_before_the_first_start(tmp_path: Path) -> None:
    """No secret, no tables, no node: each with its cure."""
    code, found = findings(Home(tmp_path))
    assert code == 1
    assert "on-api init" in found["master secret"]["details"]
    assert "alembic upgrade head" in found["migrations"]["details"]
    assert found["node"]["verdict"] == "broken"


def test_pycrypto_laid_over_pycryptodome(home: Home, tmp_path: Path) -> None:
    """Its files and its metadata, as pip leaves them: `pip check` is content, doctor isn't."""
    (tmp_path / "Crypto" / "Protocol").mkdir(parents=True)
    for path in ("Crypto/__init__.py", "Crypto/Protocol/__init__.py", "Crypto/Protocol/KDF.py"):
        (tmp_path / path).write_text("")
    info = tmp_path / "pycrypto-2.6.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pycrypto\nVersion: 2.6.1\n")
    code, found = findings(home, PYTHONPATH=str(tmp_path))
    assert code == 1
    assert found["pycryptodome"]["verdict"] == "broken"
    assert "pip uninstall -y pycrypto" in found["pycryptodome"]["cure"]
    check = subprocess.run(
        [sys.executable, "-m", "pip", "check"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=PROJECT,
        capture_output=True,
        check=False,
    )
    assert check.returncode == 0


@pytest.mark.anyio
async def test_a_daemon_of_another_version(home: Home) -> None:
    """A warning with both versions, never a failure by itself."""
    import anyio

    config = says(json.dumps({"Datastore": {"Spec": {}}}).encode())
    version = says(json.dumps({"Version": "0.99.0"}).encode())
    paths = {
        "/api/v0/id": says(json.dumps({"ID": "12D3KooWOld"}).encode()),
        "/api/v0/version": version,
        "/api/v0/config": config,
        "/ipfs/": says(b""),
    }
    async with faulty_node(paths) as settings:
        assert settings.ipfs.rpc_url is not None
        urls = {
            "ON_API_IPFS__RPC_URL": settings.ipfs.rpc_url,
            "ON_API_IPFS__GATEWAY_URL": settings.ipfs.rpc_url,
        }
        code, found = await anyio.to_thread.run_sync(lambda: findings(home, **urls))
    assert code == 0
    assert found["node"]["verdict"] == "warning"
    assert "0.99.0" in found["node"]["details"]
    assert ">=0.43.0" in found["node"]["details"]
    # And what that daemon says of its configuration is looked at too.
    assert found["node's settings"]["verdict"] == "warning"


def test_a_node_that_is_not_durable_or_not_of_the_profile(
    kubo: Kubo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told apart, from the repo's config."""
    config = json.loads((kubo.home / "ipfs" / "config").read_text())
    (tmp_path / "ipfs").mkdir()
    config["Datastore"]["Spec"]["mounts"][0]["sync"] = False
    config["Import"]["UnixFSChunker"] = "size-262144"
    (tmp_path / "ipfs" / "config").write_text(json.dumps(config))
    found = list(diagnosis.node_settings(Settings(_env_file=None, home=tmp_path)))
    assert [finding.verdict for finding in found] == [Severity.WARNING] * 2
    assert "unixfs-v1-2025" in (found[0].cure or "")
    assert "sync" in (found[1].cure or "")


def test_a_port_that_another_program_holds(home: Home) -> None:
    """Named, with the setting."""
    with socket.create_server(("127.0.0.1", home.port)):
        code, found = findings(home)
    assert code == 1
    assert "ON_API_PORT" in found["ports"]["cure"]


def test_a_nodes_port_that_another_program_holds(home: Home) -> None:
    """Before the node is started there, in vain."""
    with socket.create_server(("127.0.0.1", home.rpc_port)):
        code, found = findings(home)
    assert code == 1
    assert str(home.rpc_port) in found["node's ports"]["details"]
    assert "ON_API_NODE__RPC_PORT" in found["node's ports"]["cure"]


def test_a_secret_that_others_can_read_or_guess(home: Home) -> None:
    """The file's mode; a word repeated."""
    (home.path / "secret.key").chmod(0o644)
    code, found = findings(home)
    assert code == 1
    assert "chmod 600" in found["master secret"]["cure"]
    _, found = findings(home, ON_API_SECRET_KEY="secret" * 8)
    assert found["master secret"]["verdict"] == "warning"


def test_more_connections_than_the_server_allows(
    postgres_database: DatabaseMaker, tmp_path: Path
) -> None:
    """The pool against max_connections."""
    url = f"http://127.0.0.1:{free_port()}"
    settings = Settings(
        _env_file=None,
        home=tmp_path,
        database_url=postgres_database(),
        database={"pool_size": 900},
        ipfs=IpfsSettings(rpc_url=url, gateway_url=url),
        node=NodeSettings(),
    )
    found = {finding.name: finding for finding in diagnose(settings)}
    assert found["connections"].verdict is Severity.WARNING
    assert found["database"].verdict is Severity.OK


def test_missing_swagger_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in an incomplete copy."""
    monkeypatch.setattr(diagnosis, "SWAGGER_FOLDER", tmp_path)
    [found] = diagnosis.swagger(Settings(_env_file=None))
    assert found.verdict is Severity.BROKEN
    assert "swagger-ui.css" in found.details
