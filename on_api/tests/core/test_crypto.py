"""Secrets: derived by purpose, hashed with their cost, recognised by their checksum, never usable
by default."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from Crypto.Protocol.KDF import scrypt
from pydantic import SecretStr

from on_api.core.crypto import kdf, tokens
from on_api.core.crypto.kdf import Scrypt
from on_api.core.crypto.passwords import PasswordHasher
from on_api.core.crypto.sealing import Sealer
from on_api.core.crypto.secrets import (
    Keyring,
    Purpose,
    UnknownSecretError,
    create_secret_file,
    keep_previous,
    rotate_secret_file,
)
from on_api.core.errors import ServiceUnavailable, StartupError
from on_api.core.models.revisions import PROJECT
from on_api.core.server_settings import AuthSettings
from on_api.core.setting_groups import MIB
from on_api.core.settings import Settings
from on_api.tests.testing.deadline import until


def hasher(log_n: int = 10, memory: int = 64 * MIB, patience: float = 10) -> PasswordHasher:
    """A quick one."""
    return PasswordHasher(Scrypt(memory=memory, patience=patience), log_n=log_n)


def test_keys_are_told_by_their_checksum() -> None:
    """Every single mistyped character is noticed."""
    key = tokens.new_key()
    assert tokens.is_well_formed(key)
    assert key != tokens.new_key()
    for index in range(len(key)):
        other = "x" if key[index] != "x" else "y"
        assert not tokens.is_well_formed(key[:index] + other + key[index + 1 :])
    for wrong in ("", "onapi_", key[:-1], key + "a", key.upper(), "é" * len(key)):
        assert not tokens.is_well_formed(wrong)


def test_digests_depend_on_the_secret() -> None:
    """What is at rest is worth nothing without the master secret."""
    key = tokens.new_key()
    assert tokens.digest(key, b"a" * 32) != tokens.digest(key, b"b" * 32)
    assert tokens.digest(key, b"a" * 32) == tokens.digest(key, b"a" * 32)


@pytest.mark.parametrize("password", ["correct horse", "пароль 密码 🦄", "a" * 256, "\x00 inside"])
def test_passwords_round_trip(password: str) -> None:
    """The right one and no other; salted; the cost is written beside the hash."""
    stored = hasher().hash(password)
    assert stored.startswith("$scrypt$ln=10,r=8,p=1$")
    assert stored != hasher().hash(password)
    assert hasher().verify(password, stored).correct
    assert not hasher().verify(password + "x", stored).correct
    assert not hasher().verify(password, stored).outdated
    assert hasher(log_n=11).verify(password, stored).outdated
    assert not hasher(log_n=11).verify("wrong", stored).outdated


def test_an_unknown_user_costs_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same derivation at the same cost, so that time doesn't tell who has an account."""
    calls: list[int] = []

    def counting(password: bytes, salt: bytes, length: int, **cost: int) -> object:
        calls.append(cost["N"])
        return scrypt(password, salt, length, N=cost["N"], r=cost["r"], p=cost["p"])

    made = hasher()
    stored = made.hash("x")
    monkeypatch.setattr(kdf, "scrypt", counting)
    assert not made.verify("x", None).correct
    assert made.verify("x", stored).correct
    assert calls == [1024, 1024]


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "plain",
        "$scrypt$ln=10,r=8,p=1$c2FsdA$",
        "$scrypt$ln=30,r=8,p=1$c2FsdA$aGFzaA",
        "$scrypt$ln=18,r=99,p=1$c2FsdA$aGFzaA",
        "$scrypt$ln=10,r=8,p=9$c2FsdA$aGFzaA",
        "$scrypt$ln=10,r=8,p=1$c2FsdA$aGFzaA\n",
        "$argon2id$v=19$m=1,t=1,p=1$c2FsdA$aGFzaA",
    ],
)
def test_hashes_that_are_none_or_cost_too_much(
    stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong, and for none of them is memory spent."""
    made = hasher()

    def refuse(*_: object, **kwargs: int) -> bytes:
        assert kwargs["N"] * kwargs["r"] * 128 <= 64 * MIB
        return bytes(32)

    monkeypatch.setattr(kdf, "scrypt", refuse)
    assert not made.verify("x", stored).correct


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more at once than allowed; who waits too long is told to come back."""
    running, most, guard, go_on = 0, 0, threading.Lock(), threading.Event()

    def slow(*_: object, **__: object) -> bytes:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        go_on.wait(10)
        with guard:
            running -= 1
        return bytes(32)

    monkeypatch.setattr(kdf, "scrypt", slow)
    made = hasher(log_n=15, memory=96 * MIB, patience=0.2)  # room for three
    refused: list[BaseException] = []

    def one() -> None:
        try:
            made.hash("x")
        except ServiceUnavailable as error:
            refused.append(error)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(refused) == 5, "the others are told to come back")
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert most == 3
    assert len(refused) == 5


def test_the_memory_holds_one_hash_at_least() -> None:
    """However little is allowed, new hashes can be made; dearer ones are refused, not waited
    for."""
    auth = AuthSettings(scrypt_log_n=17, passphrase_log_n=10, scrypt_memory=32 * MIB)
    made = Scrypt.load(Settings(_env_file=None, auth=auth))
    assert made.fits(17)
    assert not made.fits(18)
    with pytest.raises(ValueError, match="memory"):
        made.derive(b"x", b"salt", log_n=18)


def test_the_master_secret(tmp_path: Path) -> None:
    """From the file or the environment; none, or half of one, is said with the cure."""
    settings = Settings(_env_file=None, home=tmp_path)
    with pytest.raises(StartupError, match="on-api init"):
        Keyring.load(settings)
    assert create_secret_file(tmp_path)
    assert not create_secret_file(tmp_path)
    path = tmp_path / "secret.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["secret.key"]
    first = Keyring.load(settings).subkey(Purpose.API_KEYS)
    assert first == Keyring.load(settings).subkey(Purpose.API_KEYS)
    path.write_text("short")
    with pytest.raises(StartupError, match="backup"):
        Keyring.load(settings)


def test_subkeys() -> None:
    """One for each purpose; the derivation never changes, or everything at rest were lost."""
    settings = Settings(_env_file=None, secret_key=SecretStr("0123456789abcdef0123456789abcdef"))
    secret = Keyring.load(settings)
    subkeys = {purpose: secret.subkey(purpose) for purpose in Purpose}
    assert len(set(subkeys.values())) == len(Purpose)
    assert all(len(subkey) == 32 for subkey in subkeys.values())
    assert subkeys[Purpose.API_KEYS].hex() == (
        "f06eddc8f137267c8bdaff5a5b7625b7c0492078bc206e13d45ac7522b39ac51"
    )


def test_a_rotation_loses_no_secret(tmp_path: Path) -> None:
    """What the old one protects opens until nothing needs it; others see the new one by itself."""
    settings = Settings(_env_file=None, home=tmp_path)
    create_secret_file(tmp_path)
    running = Keyring.load(settings)
    old = running.version
    sealed = Sealer(running, Purpose.ANSWERS).seal(b"a secret", b"context")
    rotate_secret_file(tmp_path)
    rotated = Keyring.load(settings)
    assert rotated.version != old
    assert rotated.versions == [rotated.version, old]
    assert Sealer(rotated, Purpose.ANSWERS).open(sealed, b"context") == b"a secret"
    # A process that was running before reads what another one has sealed since.
    since = Sealer(rotated, Purpose.ANSWERS).seal(b"another", b"context")
    assert Sealer(running, Purpose.ANSWERS).open(since, b"context") == b"another"
    assert stat.S_IMODE((tmp_path / "secret.key.previous").stat().st_mode) == 0o600
    keep_previous(tmp_path, {old})
    assert old in Keyring.load(settings).versions
    keep_previous(tmp_path, set())
    assert sorted(item.name for item in tmp_path.iterdir()) == ["secret.key"]
    with pytest.raises(UnknownSecretError):
        Sealer(Keyring.load(settings), Purpose.ANSWERS).open(sealed, b"context")


def test_pycrypto_over_pycryptodome_is_said_with_its_cure(tmp_path: Path) -> None:
    """A `Crypto` without scrypt, as pycrypto leaves it: one sentence from every command."""
    package = tmp_path / "Crypto" / "Protocol"
    package.mkdir(parents=True)
    (tmp_path / "Crypto" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "KDF.py").write_text("def PBKDF2(): ...\n")
    done = subprocess.run(
        [sys.executable, "-c", "from on_api.cli.main import run; run()", "init"],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "ON_API_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "pip uninstall -y pycrypto" in done.stderr
    assert "Traceback" not in done.stderr
