"""Settings: complete in `.env.example`, strict about names, silent about secrets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError

from on_api.core.errors import StartupError
from on_api.core.models.revisions import PROJECT
from on_api.core.setting_groups import IpfsSettings
from on_api.core.settings import Settings, UnknownSettingError, UnreadableCredentialError
from on_api.server.process import load_settings

EXAMPLE = PROJECT / ".env.example"
SECRET = "postgresql://ada:hunter2-hunter2-hunter2-hunter2@db/x"


def every_setting(
    model: type[BaseModel] = Settings, prefix: str = "ON_API_"
) -> Iterator[tuple[str, Any, str | None]]:
    """Name, default and description of each, nested ones by their full name."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from every_setting(kind, f"{prefix}{name}__".upper())
        else:
            default = field.get_default(call_default_factory=True, validated_data={})
            yield f"{prefix}{name}".upper(), default, field.description


def as_written(value: object) -> str:
    """A default as an environment variable."""
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, list) else str(value)


def test_env_example_lists_every_setting_with_its_default() -> None:
    """Nothing missing, nothing too much, each with its description above it."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    found = {}
    for above, line in pairwise(lines):
        if match := re.fullmatch(r"#(ON_API_\w+)=(.*)", line):
            found[match[1]] = (match[2].replace("[]", ""), above.removeprefix("# "))
    expected = {name: (as_written(d), text) for name, d, text in every_setting()}
    assert found == expected


def test_env_example_uncommented_is_the_default(tmp_path: Path) -> None:
    """Copying it and uncommenting everything changes nothing."""
    text = re.sub(r"(?m)^#(ON_API_\w+=)", r"\1", EXAMPLE.read_text(encoding="utf-8"))
    (tmp_path / ".env").write_text(text, encoding="utf-8")
    assert Settings(_env_file=tmp_path / ".env") == Settings(_env_file=None)


def test_misspelt_names_are_errors_and_others_are_none_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the environment and in `.env`, at the top and nested."""
    env = tmp_path / ".env"
    env.write_text("POSTGRES_PASSWORD=x\nON_API_PORT=8111\n")
    assert Settings(_env_file=env).port == 8111
    env.write_text("ON_API_PROT=8111\n")
    with pytest.raises(UnknownSettingError, match="ON_API_PROT"):
        Settings(_env_file=env)
    for name, error in (
        ("ON_API_PROT", UnknownSettingError),
        ("ON_API_NODE__RCP_PORT", ValidationError),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(name, "1")
            with pytest.raises(error):
                Settings(_env_file=None)


def test_values_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists, nested names, normalised addresses."""
    for name, value in {
        "ON_API_TRUSTED_PROXIES": "10.0.0.1, 192.168.0.0/16",
        "ON_API_CORS__ORIGINS": '["https://a.example"]',
        "ON_API_DATABASE_URL": SECRET,
        "ON_API_PUBLIC_URL": "https://files.example/",
        "ON_API_NODE__NETWORK": "public",
    }.items():
        monkeypatch.setenv(name, value)
    settings = Settings(_env_file=None)
    assert settings.trusted_proxies == ["10.0.0.1", "192.168.0.0/16"]
    assert settings.cors.origins == ["https://a.example"]
    assert settings.sqlalchemy_url == SECRET.replace("postgresql://", "postgresql+psycopg2://")
    assert settings.base_url == "https://files.example"
    assert settings.node.network == "public"
    assert settings.manages_node


def test_values_from_files_of_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files named as settings, nested ones too. The environment wins over them, they win over
    `.env`."""
    folder, env = tmp_path / "credentials", tmp_path / ".env"
    folder.mkdir()
    for name, text in {
        "ON_API_SECRET_KEY": "hunter2" * 8 + "\n",
        "ON_API_PREVIOUS_SECRET_KEYS": '["another secret, as long as it has to be"]\n',
        "ON_API_IPFS__RPC_AUTH": "bearer:of-the-node\n",
        "on_api_threads": "30",
        "ON_API_PORT": "8222",
        "ON_API_LOG__LEVEL": "",
        "database_password": "of others",
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    env.write_text("ON_API_PORT=8111\nON_API_THREADS=20\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    monkeypatch.setenv("ON_API_PORT", "8333")
    settings = load_settings(_env_file=env)
    assert settings.secret_key is not None
    assert settings.secret_key.get_secret_value() == "hunter2" * 8
    assert len(settings.previous_secret_keys) == 1
    assert settings.ipfs.rpc_auth is not None
    assert (settings.port, settings.threads) == (8333, 30)
    assert settings.log == Settings(_env_file=None).log
    monkeypatch.chdir(folder)
    for none in ("", str(tmp_path / "none")):
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", none)
        assert load_settings(_env_file=None).secret_key is None


def test_files_of_credentials_that_can_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sentence that names the file and never what is in it."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    wrong = tmp_path / "ON_API_SECRET_KEYS"
    wrong.write_text("hunter2")
    with pytest.raises(StartupError, match="ON_API_SECRET_KEYS is not a setting"):
        load_settings(_env_file=None)
    wrong = wrong.rename(tmp_path / "ON_API_SECRET_KEY")
    with pytest.raises(StartupError, match="at least 32 characters"):
        load_settings(_env_file=None)
    wrong.write_bytes(b"hunter2\xff" * 8)
    with pytest.raises(StartupError, match=r"ON_API_SECRET_KEY .* not UTF-8") as raised:
        load_settings(_env_file=None)
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))
    wrong.unlink()
    wrong.mkdir()
    with pytest.raises(UnreadableCredentialError, match="Is a directory"):
        Settings(_env_file=None)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", __file__)
    with pytest.raises(StartupError, match="can't be read: Not a directory"):
        load_settings(_env_file=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ON_API_SECRET_KEY", "too short"),
        ("ON_API_DATABASE_URL", "mysql://x/y"),
        ("ON_API_PUBLIC_URL", "https://user:password@host"),
        ("ON_API_IPFS__RPC_URL", "http://127.0.0.1:5001"),  # without its gateway
        ("ON_API_THREADS", "500"),  # more than connections
        ("ON_API_NODE__STORAGE_MAX", "plenty"),
        ("ON_API_TRUSTED_PROXIES", "10.0.0.1, proxy.example"),
        ("ON_API_PINS__DELEGATES", '["/ip4/203.0.113.1/tcp/4001"]'),  # without its /p2p/ID
        ("ON_API_CORS", '{"origins": ["*"], "credentials": true}'),
    ],
)
def test_what_can_not_be(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Refused at the start rather than in the middle."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings(_env_file=None)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://kubo:8080", "http://kubo:8080"),
        ("http://localhost:8080///", "http://localhost:8080"),
        ("HTTP://[::1]:8080/", "http://[::1]:8080"),
        ("https://gateway.example/node/", "https://gateway.example/node"),
        ("http://10.0.0.7", "http://10.0.0.7"),
        ("http://my_kubo:8080/ipfs/", "http://my_kubo:8080"),
    ],
)
def test_addresses_of_a_node(given: str, meant: str) -> None:
    """By name, by address of both kinds, below a path."""
    ipfs = IpfsSettings(rpc_url=given.replace("/ipfs", "/api/v0"), gateway_url=given)
    assert (ipfs.rpc_url, ipfs.gateway_url) == (meant, meant)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@kubo:5001",
        "http://hunter2@kubo:5001",
        "http://kubo:5001?token=hunter2",
        "http://kubo:5001/#hunter2",
        "http://kubo:hunter2",
        "http://kubo:0/hunter2",
        "http://kubo:70000/hunter2",
        "http://[::hunter2]:5001",
        "http://:5001/hunter2",
        "http:///hunter2",
        "http://kubo/a b hunter2",
        "http://kubo\n/hunter2",
        "unix:///run/hunter2.sock",
        "ftp://kubo/hunter2",
        "/ip4/127.0.0.1/tcp/5001/hunter2",
        "kubo:5001/hunter2",
        "//kubo:5001/hunter2",
        "file:///hunter2",
    ],
)
@pytest.mark.parametrize("name", ["RPC_URL", "GATEWAY_URL"])
def test_addresses_that_are_none(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    """One sentence that names the setting and not what stands in it."""
    for each in ("RPC_URL", "GATEWAY_URL"):
        monkeypatch.setenv(f"ON_API_IPFS__{each}", "http://127.0.0.1:5001")
    monkeypatch.setenv(f"ON_API_IPFS__{name}", url)
    with pytest.raises(StartupError, match=f"ON_API_IPFS__{name}: must be") as raised:
        load_settings()
    assert "hunter2" not in raised.value.details


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in repr, str or a dump."""
    monkeypatch.setenv("ON_API_DATABASE_URL", SECRET)
    monkeypatch.setenv("ON_API_SECRET_KEY", "hunter2" * 8)
    settings = Settings(_env_file=None)
    for shown in (repr(settings), str(settings), str(settings.model_dump())):
        assert "hunter2" not in shown


REFUSED = [
    "mysql://ada:hunter2@db/x",
    "postgresql://ada:pass@db:hunter2/x",
    "hunter2",
    '{"hunter2": ["hunter2"]}',
    '["hunter2 "]',
]


@pytest.mark.parametrize("name", [name for name, _, _ in every_setting()])
def test_no_error_shows_what_was_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that nobody turns into a sentence: whatever starts the application may print
    it."""
    for value in REFUSED:
        monkeypatch.setenv(name, value)
        try:
            Settings(_env_file=None)
        except (ValidationError, SettingsError):
            assert "hunter2" not in traceback.format_exc()


@pytest.mark.parametrize("value", REFUSED[:2])
def test_alembic_shows_nothing_of_a_refused_url(value: str, tmp_path: Path) -> None:
    """One sentence that names the variable, from the command and with `-x url=`."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("ON_API_")}
    alembic = Path(sys.executable).parent / "alembic"
    for options, added in (
        ([], {"ON_API_DATABASE_URL": value}),
        (["-x", f"url={value}"], {}),
    ):
        done = subprocess.run(
            [alembic, *options, "current"],
            env={**inherited, "ON_API_HOME": str(tmp_path), **added},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0
        said = done.stdout + done.stderr
        assert "ON_API_DATABASE_URL" in said
        assert "hunter2" not in said
        assert "Traceback" not in said
