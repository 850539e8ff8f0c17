"""`on-api backup`, `verify` and `restore` as an operator runs them: killed, run again, and told
wrong things."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from on_api.core.crypto.age import Identity, X25519Identity
from on_api.core.crypto.secrets import SecretCopy
from on_api.tests.testing.backups import (
    PASSPHRASE,
    content_of,
    expire_turns,
    passphrase,
    passphrase_file,
    reading,
    running,
)
from on_api.tests.testing.deadline import until
from on_api.tests.testing.processes import Home

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="starts and kills whole process trees, as on Linux"
)

MIB = 1024 * 1024


def upload(home: Home, key: str, *files: bytes) -> dict[str, bytes]:
    """Upload files; return their bytes by id."""
    sent: dict[str, bytes] = {}
    with home.client(key) as client:
        for data in files:
            answer = client.put("/v1/files?name=x", content=data)
            assert answer.status_code == 201, answer.text
            sent[answer.json()["id"]] = data
    return sent


def test_killed_in_the_middle_and_run_again(home: Home, tmp_path: Path) -> None:
    """Backup and restore, each killed when it has done some of its work: both go on from there,
    and everything is read back from a new home. Meanwhile nothing else begins in that home."""
    key = home.init()
    folder, given = tmp_path / "backup", passphrase_file(tmp_path)
    with home.serving():
        small = [os.urandom(1000 + number) for number in range(30)]
        sent = upload(home, key, *(os.urandom(40 * MIB + number) for number in range(4)), *small)
        with running(home, "backup", str(folder), "--passphrase-file", given):
            until(lambda: len(list(folder.glob("blocks/*/*"))) > 5, "some blocks are there", 60)
        assert not [path for path in folder.glob("databases/*") if path.name[0] != "."]
        expire_turns(f"sqlite:///{home.path / 'on-api.db'}")
        done = home.run("backup", str(folder), "--passphrase-file", given, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads(done.stdout)
        assert report["outcome"] == "complete"
        blocks = len(list(folder.glob("blocks/*/*")))
        assert report["copied_blocks"] <= blocks
        assert not list(folder.glob("blocks/*/*.part"))
    shutil.rmtree(home.path)
    new = Home(tmp_path / "new" / "home")
    with running(new, "restore", str(folder), "--passphrase-file", given):
        until(lambda: pinned_bytes(new) > 50 * MIB, "some blocks are restored", 60)
    until(lambda: not new.kubo_runs(), "its node has ended")
    for command in ("serve", "init", "worker"):
        refused = new.run(command)
        assert refused.returncode == 1, command
        assert "on-api restore" in refused.stderr
    assert not (new.path / "on-api.db").exists()
    state = (new.path / "restore.json").read_text()
    done = new.run("restore", str(folder), "--passphrase-file", given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clean" in done.stdout
    (new.path / "restore.json").write_text(
        state
    )  # killed when all was there, before it was checked
    again = new.run("restore", str(folder), "--json")
    assert again.returncode == 0, again.stdout + again.stderr
    told = json.loads(again.stdout)
    assert (told["content"], told["fsck"]["clean"]) == (None, True)
    with reading(new, key) as client:
        for file_id, data in sent.items():
            assert content_of(client, file_id) == data
    again = new.run("restore", str(folder), "--passphrase-file", given)
    assert again.returncode == 1
    assert "not empty" in again.stderr


def pinned_bytes(home: Home) -> int:
    """Return the bytes of the blocks in a home's node."""
    return sum(path.stat().st_size for path in (home.path / "ipfs/blocks").glob("*/*.data"))


def test_the_secret_goes_where_it_is_told(home: Home, tmp_path: Path) -> None:
    """To a recipient, under a passphrase, or nowhere; exactly one is said, and nobody is asked."""
    home.init()
    secret = (home.path / "secret.key").read_text().strip()
    identity = X25519Identity.generate()
    given = passphrase_file(tmp_path)
    folders = {name: tmp_path / name for name in ("recipient", "phrase", "without")}
    with home.serving():
        for options in ([], ["--without-secret", "--passphrase-file", given]):
            refused = home.run("backup", str(folders["without"]), *options)
            assert refused.returncode == 1
            assert "exactly one" in refused.stderr
            assert not folders["without"].exists()
        mistaken = ["--recipient", identity.export()]
        refused = home.run("backup", str(folders["recipient"]), *mistaken)
        assert refused.returncode == 1
        assert identity.export() not in refused.stderr
        for name, options in {
            "recipient": ["--recipient", str(identity.recipient)],
            "phrase": ["--passphrase-file", given],
            "without": ["--without-secret"],
        }.items():
            assert home.run("backup", str(folders[name]), *options).returncode == 0
    copies = {name: list(folder.glob("databases/*.age")) for name, folder in folders.items()}
    assert copies.pop("without") == []
    opened_by: dict[str, Identity] = {"recipient": identity, "phrase": passphrase()}
    for name, [copy] in copies.items():
        found = SecretCopy.opened(copy.read_bytes(), [opened_by[name]])
        assert found.versions == SecretCopy([secret]).versions
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("*/databases/*"))
    assert secret.encode() not in stored


def test_a_wrong_key_is_refused_before_anything_is_written(home: Home, tmp_path: Path) -> None:
    """A wrong key, another secret and none at all are refused; the right identity opens it."""
    key = home.init()
    secret = (home.path / "secret.key").read_text().strip()
    identity = X25519Identity.generate()
    for name, content in {
        "mine": f"# created by age-keygen\n{identity.export()}\n",
        "wrong": X25519Identity.generate().export(),
        "another": "x" * 64,
    }.items():
        (tmp_path / name).write_text(content)
    folder = str(tmp_path / "backup")
    with home.serving():
        [file_id] = upload(home, key, b"mine")
        recipient = ["--recipient", str(identity.recipient)]
        assert home.run("backup", folder, *recipient).returncode == 0
    new = Home(tmp_path / "new" / "home")
    for options, words in (
        ([], "--identity"),
        (["--identity", str(tmp_path / "wrong")], "can't be opened"),
        (["--passphrase-file", str(tmp_path / "another")], "can't be opened"),
        (["--secret-file", str(tmp_path / "another")], "not the master secret"),
    ):
        refused = new.run("restore", folder, *options)
        assert refused.returncode == 1, options
        assert words in refused.stderr
        assert not new.path.exists()
    done = new.run("restore", folder, "--identity", str(tmp_path / "mine"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (new.path / "secret.key").read_text().strip() == secret
    assert (new.path / "secret.key").stat().st_mode & 0o777 == 0o600
    with reading(new, key) as client:
        assert content_of(client, file_id) == b"mine"


def test_nothing_is_written_over(home: Home, tmp_path: Path) -> None:
    """Neither a home that is used, nor one that runs; what is no backup is neither verified nor
    restored."""
    key = home.init()
    folder = str(tmp_path / "backup")
    with home.serving():
        upload(home, key, b"mine")
        assert home.run("backup", folder, "--without-secret").returncode == 0
        refused = home.run("restore", folder)
        assert refused.returncode == 1
        assert "runs" in refused.stderr
    before = (home.path / "on-api.db").read_bytes()
    refused = home.run("restore", folder)
    assert refused.returncode == 1
    assert "not empty" in refused.stderr
    assert (home.path / "on-api.db").read_bytes() == before
    for command in ("verify", "restore"):
        refused = home.run(command, str(home.path))
        assert refused.returncode == 1
        assert "no backup" in refused.stderr


def test_a_node_that_has_outlived_its_database(home: Home, tmp_path: Path) -> None:
    """An older database beside a newer node: what the backup knows is served, and what it doesn't
    is in quarantine, not gone."""
    key = home.init()
    folder = str(tmp_path / "backup")
    with home.serving():
        [file_id] = upload(home, key, b"older")
        assert home.run("backup", folder, "--without-secret").returncode == 0
        upload(home, key, os.urandom(MIB + 1))
    for path in home.path.iterdir():
        if path.name not in {"ipfs", "lock", "node.log", "secret.key"}:
            path.unlink() if path.is_file() else shutil.rmtree(path)
    done = home.run("restore", folder)
    assert done.returncode == 1, done.stdout  # `fsck` tells of the newer pin
    assert "orphan_pin" in done.stdout
    with reading(home, key) as client:
        assert content_of(client, file_id) == b"older"
        repaired = home.run("fsck", "--repair", "--json")
    assert repaired.returncode == 0, repaired.stdout
    assert json.loads(repaired.stdout)["deferred"] == 1


def test_no_secret_is_among_the_arguments(home: Home, tmp_path: Path) -> None:
    """Nor in what the command prints."""
    home.init()
    folder, given = str(tmp_path / "backup"), passphrase_file(tmp_path)
    with running(home, "backup", folder, "--passphrase-file", given) as process:
        seen = b""
        while process.poll() is None:
            seen += Path(f"/proc/{process.pid}/cmdline").read_bytes()
            time.sleep(0.02)
        assert process.returncode == 0  # with a node that it has started itself
    printed = (home.path.parent / "command.log").read_text()
    secret = (home.path / "secret.key").read_text().strip()
    for text in (PASSPHRASE, secret):
        assert text.encode() not in seen
        assert text not in printed
    assert not home.kubo_runs()
