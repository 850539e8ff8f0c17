"""Making a node's repo and keeping its configuration, with the real program."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from on_api.core.errors import StartupError
from on_api.core.ipfs.daemon.binary import kubo_binary
from on_api.core.ipfs.daemon.repo import (
    config_differences,
    gateway_socket,
    kubo_environment,
    peer_id_of,
    prepare_repo,
    read_config,
    stale_keys,
    wanted_config,
)
from on_api.core.setting_groups import NodeSettings

SECRET = "bearer:a secret of the tests"
PRIVATE = NodeSettings(rpc_port=50011, gateway_port=50012)
PUBLIC = NodeSettings(rpc_port=50011, gateway_port=50012, swarm_port=50013, network="public")

Json = dict[str, Any]


@pytest.fixture(scope="module")
def binary() -> Path:
    """Kubo's program, as on-api finds it."""
    return kubo_binary(NodeSettings(), print)


@pytest.fixture
def repo(binary: Path, tmp_path: Path) -> Path:
    """A repo that was just made."""
    prepare_repo(binary, tmp_path / "ipfs", PRIVATE, SECRET)
    return tmp_path / "ipfs"


def config_of(repo: Path) -> Json:
    """The config file, for looking into."""
    return json.loads((repo / "config").read_text())  # type: ignore[no-any-return]


def change(repo: Path, edit: Callable[[Json], object]) -> None:
    """Edit the config file as an operator does."""
    config = config_of(repo)
    edit(config)
    (repo / "config").write_text(json.dumps(config))


def foreign_repo(binary: Path, path: Path, profile: str) -> Json:
    """The config of a repo that on-api did not make."""
    path.mkdir()
    command = [str(binary), "init", f"--profile={profile}"]
    subprocess.run(command, env=kubo_environment(path), capture_output=True, check=True)
    return config_of(path)


def test_a_new_repo(repo: Path) -> None:
    """Complete, durable, for its owner's eyes, and as wanted in every key."""
    assert [entry.name for entry in repo.parent.iterdir()] == ["ipfs"]
    assert stat.S_IMODE((repo / "config").stat().st_mode) == 0o600
    assert stat.S_IMODE(repo.stat().st_mode) == 0o700
    config = config_of(repo)
    assert stale_keys(config, wanted_config(PRIVATE, SECRET, gateway_socket(repo))) == []
    assert config_differences(config, PRIVATE) == []
    [blocks] = [m for m in config["Datastore"]["Spec"]["mounts"] if m["mountpoint"] == "/blocks"]
    assert (blocks["type"], blocks["sync"]) == ("flatfs", True)
    assert config["API"]["Authorizations"]["on-api"]["AuthSecret"] == SECRET
    assert peer_id_of(repo) == config["Identity"]["PeerID"]


def test_the_import_profile_is_kubos_own(repo: Path, binary: Path) -> None:
    """What on-api writes is what `--profile=unixfs-v1-2025` writes, no more and no less."""
    theirs = foreign_repo(binary, repo.parent / "theirs", "unixfs-v1-2025")
    assert config_of(repo)["Import"] == theirs["Import"]


def test_again_changes_nothing(repo: Path, binary: Path) -> None:
    """A second start doesn't even write the file."""
    before = (repo / "config").stat()
    prepare_repo(binary, repo, PRIVATE, SECRET)
    after = (repo / "config").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_settings_are_written_and_the_operators_own_stay(repo: Path, binary: Path) -> None:
    """Ports, limit and secret follow the settings; what on-api has no wish about is not its."""
    own = {"AuthSecret": "bearer:operator", "AllowedPaths": ["/api/v0"]}

    def edit(config: Json) -> None:
        config["Gateway"]["NoFetch"] = False
        config["Gateway"]["PublicGateways"]["example.org"] = {"Paths": ["/ipfs"]}
        config["API"]["Authorizations"]["operator"] = own
        config["Swarm"]["ConnMgr"] = {"HighWater": 20}
        config["Plugins"] = {"Plugins": None}

    change(repo, edit)
    identity = peer_id_of(repo)
    moved = NodeSettings(rpc_port=50021, gateway_port=50022, storage_max="5GB")
    prepare_repo(binary, repo, moved, "bearer:new")
    config = config_of(repo)
    assert stale_keys(config, wanted_config(moved, "bearer:new", gateway_socket(repo))) == []
    assert config["Addresses"]["API"] == "/ip4/127.0.0.1/tcp/50021"
    assert config["Datastore"]["StorageMax"] == "5GB"
    assert config["API"]["Authorizations"]["operator"] == own
    assert config["Gateway"]["PublicGateways"]["example.org"] == {"Paths": ["/ipfs"]}
    assert config["Swarm"]["ConnMgr"] == {"HighWater": 20}
    assert peer_id_of(repo) == identity
    assert stat.S_IMODE((repo / "config").stat().st_mode) == 0o600


def test_from_one_network_to_the_other_and_back(repo: Path, binary: Path) -> None:
    """Nothing of the public network stays in a private node's config."""
    assert wanted_config(PUBLIC, SECRET).keys() == wanted_config(PRIVATE, SECRET).keys()
    before = config_of(repo)
    prepare_repo(binary, repo, PUBLIC, SECRET)
    public = config_of(repo)
    assert public["Bootstrap"] == ["auto"]
    assert public["AutoConf"]["Enabled"] is True
    assert public["Provide"]["Enabled"] is True
    assert all("/50013" in address for address in public["Addresses"]["Swarm"])
    assert public["Addresses"]["API"] == "/ip4/127.0.0.1/tcp/50011"
    prepare_repo(binary, repo, PRIVATE, SECRET)
    assert config_of(repo) == before


def test_a_path_that_is_too_long_for_a_socket(repo: Path) -> None:
    """Leaves the gateway its port alone."""
    assert config_of(repo)["Addresses"]["Gateway"] == [
        "/ip4/127.0.0.1/tcp/50012", f"/unix/{repo}/gateway.sock"
    ]  # fmt: skip
    far = repo / ("x" * 100)
    assert gateway_socket(far) is None
    wanted = wanted_config(PRIVATE, SECRET, gateway_socket(far))
    assert wanted["Addresses.Gateway"] == ["/ip4/127.0.0.1/tcp/50012"]


def test_a_private_node_is_told_of_nobody() -> None:
    """No address in its settings but loopback's, and no word for Kubo's public defaults."""
    wanted = json.dumps(wanted_config(PRIVATE, SECRET))
    assert "auto" not in wanted.replace("AutoConf", "").replace("AutoTLS", "")
    assert "0.0.0.0" not in wanted  # noqa: S104 (looked for, not bound)
    assert "/ip6/::" not in wanted


def test_a_datastore_that_does_not_sync_is_reported_and_left(
    repo: Path, binary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Changing it is the operator's choice."""

    def edit(config: Json) -> None:
        config["Datastore"]["Spec"]["mounts"][0]["sync"] = False

    change(repo, edit)
    with caplog.at_level(logging.WARNING):
        prepare_repo(binary, repo, PRIVATE, SECRET)
    assert config_of(repo)["Datastore"]["Spec"]["mounts"][0]["sync"] is False
    assert "power failure" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("profile", ["flatfs", "flatfs-measure", "pebbleds", "pebbleds-measure"])
def test_differences_of_a_node_that_is_not_ours(binary: Path, tmp_path: Path, profile: str) -> None:
    """Each with its cure; after the cures there are none."""
    config = foreign_repo(binary, tmp_path / "theirs", profile)
    durable = profile.startswith("pebble")
    found = config_differences(config, PRIVATE)
    assert len(found) == 3 - durable
    assert any("Import.UnixFSHAMTDirectorySizeEstimation" in sentence for sentence in found)
    assert any("Gateway.NoFetch" in sentence for sentence in found)
    assert any("sync" in sentence for sentence in found) is not durable

    ours = foreign_repo(binary, tmp_path / "cured", f"{profile},unixfs-v1-2025")
    ours["Gateway"]["NoFetch"] = True
    if not durable:
        blocks = ours["Datastore"]["Spec"]["mounts"][0]
        blocks.get("child", blocks)["sync"] = True
    assert config_differences(ours, PRIVATE) == []


@pytest.mark.parametrize(
    "spec",
    [
        None,
        {},
        [],
        {"type": "mount", "mounts": None},
        {"type": "badgerds", "syncWrites": True},
        {"type": "pebbleds", "disableWAL": True},
        {"type": "flatfs", "sync": "true"},
        {
            "type": "mount",
            "mounts": [
                {"mountpoint": "/", "type": "flatfs", "sync": True},
                {"mountpoint": "/blocks", "type": "levelds"},
            ],
        },
    ],
)
def test_datastores_that_are_not_known_to_be_durable(spec: object) -> None:
    """Whatever somebody has written there."""
    [sentence] = [
        sentence
        for sentence in config_differences({"Datastore": {"Spec": spec}}, PRIVATE)
        if "power failure" in sentence
    ]
    assert sentence.endswith(".")


def remove(*names: str) -> Callable[[Path], None]:
    """Damage by loss."""

    def damage(repo: Path) -> None:
        for name in names:
            (repo / name).rename(repo.parent / f"lost-{name}")

    return damage


def write(name: str, content: str) -> Callable[[Path], None]:
    """Damage by other content."""

    def damage(repo: Path) -> None:
        (repo / name).write_text(content)

    return damage


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (write("config", "{"), "not valid JSON"),
        (write("config", ""), "not valid JSON"),
        (write("config", "[]"), "not a JSON object"),
        (remove("config"), "no config file"),
        (remove("blocks"), "`blocks` is missing"),
        (remove("datastore"), "`datastore` is missing"),
        (remove("version"), "`version` is missing"),
        (remove("datastore_spec"), "`datastore_spec` is missing"),
    ],
)
def test_a_damaged_repo(
    repo: Path, binary: Path, damage: Callable[[Path], None], what: str
) -> None:
    """Is refused with the place and the cure, and nothing in it is changed."""
    damage(repo)
    before = contents(repo)
    with pytest.raises(StartupError, match=what) as raised:
        prepare_repo(binary, repo, PRIVATE, SECRET)
    assert str(repo) in raised.value.details
    assert "backup" in raised.value.details
    assert contents(repo) == before


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_a_repo_without_identity(repo: Path) -> None:
    """Has nothing that a node could be recognised by."""
    change(repo, lambda config: config.pop("Identity"))
    with pytest.raises(StartupError, match="no identity"):
        peer_id_of(repo)


def test_no_repo_to_read(tmp_path: Path) -> None:
    """An error with the file's name."""
    with pytest.raises(StartupError, match="config"):
        read_config(tmp_path)


def test_an_empty_folder_becomes_a_repo(binary: Path, tmp_path: Path) -> None:
    """Also behind a link to another disk, which stays a link."""
    (tmp_path / "disk" / "repo").mkdir(parents=True)
    link = tmp_path / "ipfs"
    link.symlink_to(tmp_path / "disk" / "repo")
    prepare_repo(binary, link, PRIVATE, SECRET)
    assert link.is_symlink()
    assert (tmp_path / "disk" / "repo" / "config").exists()
    assert [entry.name for entry in (tmp_path / "disk").iterdir()] == ["repo"]


def test_a_link_to_a_disk_that_is_not_there(binary: Path, tmp_path: Path) -> None:
    """Must not become a new, empty repo."""
    link = tmp_path / "ipfs"
    link.symlink_to(tmp_path / "disk" / "repo")
    with pytest.raises(StartupError, match=str(link)):
        prepare_repo(binary, link, PRIVATE, SECRET)
    assert link.is_symlink()


def test_init_that_fails(tmp_path: Path) -> None:
    """Its own words, and nothing is left."""
    program = tmp_path / "bin"
    program.write_text("#!/bin/sh\necho 'Error: no space left' >&2\nexit 1\n")
    program.chmod(0o755)
    (tmp_path / "home").mkdir()
    with pytest.raises(StartupError, match="no space left"):
        prepare_repo(program, tmp_path / "home" / "ipfs", PRIVATE, SECRET)
    assert list((tmp_path / "home").iterdir()) == []


def test_secrets_are_not_handed_to_kubo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its environment can be read by others than its memory."""
    monkeypatch.setenv("ON_API_SECRET_KEY", "s" * 32)
    monkeypatch.setenv("IPFS_PATH", "/elsewhere")
    environment = kubo_environment(tmp_path)
    assert "s" * 32 not in environment.values()
    assert environment["IPFS_PATH"] == str(tmp_path)
    assert environment["IPFS_TELEMETRY"] == "off"


KILLED = f"""
import os, signal, sys
from pathlib import Path
from on_api.core.ipfs.daemon.repo import prepare_repo
from on_api.core.setting_groups import NodeSettings

class Countdown:
    left = int(sys.argv[3])

def dying(call):
    def counted(*arguments, **keywords):
        Countdown.left -= 1
        if Countdown.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **keywords)
    return counted

os.fsync, Path.rename, Path.replace = dying(os.fsync), dying(Path.rename), dying(Path.replace)
settings = NodeSettings(rpc_port=50011, gateway_port=50012)
prepare_repo(Path(sys.argv[1]), Path(sys.argv[2]), settings, {SECRET!r})
"""


@pytest.mark.parametrize("step", [1, 2, 3, 4, 12, -3, -2, -1])
def test_killed_while_the_repo_is_made(binary: Path, tmp_path: Path, step: int) -> None:
    """At any of its steps to the disk: the repo is there whole or not at all, and then is made."""
    repo = tmp_path / "ipfs"
    if step < 0:  # counted from the end
        other = tmp_path / "other" / "ipfs"
        other.parent.mkdir()
        prepare_repo(binary, other, PRIVATE, SECRET)
        # Config: file, rename, folder. Then each entry, the draft itself, its rename, its parent.
        step += 3 + len(list(other.rglob("*"))) + 3 + 1
    code = [sys.executable, "-c", KILLED, str(binary), str(repo), str(step)]
    assert subprocess.run(code, check=False).returncode == -signal.SIGKILL
    if repo.exists():
        wanted = wanted_config(PRIVATE, SECRET, gateway_socket(repo))
        assert stale_keys(config_of(repo), wanted) == []
    prepare_repo(binary, repo, PRIVATE, SECRET)
    assert config_differences(config_of(repo), PRIVATE) == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("step", [1, 2, 3])
def test_killed_while_the_config_is_written(repo: Path, binary: Path, step: int) -> None:
    """The old file or the new one; the node stays who it is."""
    identity = peer_id_of(repo)
    change(repo, lambda config: config["Gateway"].update(NoFetch=False))
    code = [sys.executable, "-c", KILLED, str(binary), str(repo), str(step)]
    assert subprocess.run(code, check=False).returncode == -signal.SIGKILL
    prepare_repo(binary, repo, PRIVATE, SECRET)
    assert peer_id_of(repo) == identity
    assert config_of(repo)["Gateway"]["NoFetch"] is True
    assert [name for name in os.listdir(repo) if name.startswith(".config-")] == []
