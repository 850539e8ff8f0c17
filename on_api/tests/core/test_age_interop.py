"""Files that on-api wrote open in `age`, and the other way round."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import subprocess
import termios
from pathlib import Path

import pytest

from on_api.core.crypto.age import (
    CHUNK_BYTES,
    Decryptor,
    Encryptor,
    Identity,
    Passphrase,
    Recipient,
    X25519Identity,
    X25519Recipient,
)
from on_api.core.crypto.kdf import Scrypt
from on_api.core.setting_groups import MIB
from on_api.tests.testing.programs import needs, program

pytestmark = [
    pytest.mark.usefixtures("each_aead"),
    pytest.mark.clients,
    needs("age", "age-keygen", packages="age"),
]

SIZES = [
    0,
    1,
    CHUNK_BYTES - 1,
    CHUNK_BYTES,
    CHUNK_BYTES + 1,
    5 * MIB,
    pytest.param(200 * MIB, marks=pytest.mark.soak),
]
PASSPHRASE = "correct horse 密码"


def keygen(*arguments: str | Path) -> str:
    """What `age-keygen` prints."""
    done = subprocess.run(
        [program("age-keygen"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def age(*arguments: str | Path, output: Path) -> None:
    """Run `age`. Its own `--output` makes no file for an empty plaintext."""
    with output.open("wb") as target:
        done = subprocess.run(
            [program("age"), *arguments],
            stdout=target,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr


def age_asking(*arguments: str | Path) -> None:
    """Run `age` on a terminal of its own, and give it the passphrase as often as it asks."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [program("age"), *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        said = b""
        try:
            while chunk := os.read(ours, 1000):
                said += chunk
                if b":" in chunk:
                    os.write(ours, f"{PASSPHRASE}\n".encode())
        except OSError:  # the terminal's other end is closed: it has ended
            pass
        assert process.wait(60) == 0, said
    finally:
        os.close(ours)


def make(path: Path, size: int) -> str:
    """A file of random bytes; its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while left := size - file.tell():
            piece = os.urandom(min(left, MIB))
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def encrypt(source: Path, target: Path, *recipients: Recipient) -> None:
    """By on-api."""
    writer = Encryptor(recipients)
    with source.open("rb") as plain, target.open("wb") as file:
        while piece := plain.read(MIB):
            file.write(writer.update(piece))
        file.write(writer.finish())


def decrypted(source: Path, *identities: Identity, armored: bool = False) -> str:
    """SHA-256 of the plaintext, by on-api."""
    reader = Decryptor(identities, armored=armored)
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while piece := file.read(MIB):
            digest.update(reader.update(piece))
    digest.update(reader.finish())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """An identity made by `age-keygen`."""
    keygen("-o", tmp_path / "key.txt")
    return tmp_path / "key.txt"


def identity_in(key_file: Path) -> X25519Identity:
    """As on-api reads it."""
    return X25519Identity.parse(key_file.read_text().splitlines()[-1])


def test_keys(key_file: Path, tmp_path: Path) -> None:
    """Both see the same recipient in an identity, whoever made it."""
    assert keygen("-y", key_file) == str(identity_in(key_file).recipient)
    ours = X25519Identity.generate()
    (tmp_path / "ours.txt").write_text(ours.export() + "\n")
    assert keygen("-y", tmp_path / "ours.txt") == str(ours.recipient)


@pytest.mark.parametrize("size", SIZES)
def test_both_ways(size: int, key_file: Path, tmp_path: Path) -> None:
    """Files of every shape, for two recipients; the second of them reads. In armor too."""
    plain, file, back = tmp_path / "plain", tmp_path / "file.age", tmp_path / "back"
    digest = make(plain, size)
    theirs, ours = identity_in(key_file), X25519Identity.generate()

    encrypt(plain, file, ours.recipient, X25519Recipient.parse(str(theirs.recipient)))
    age("--decrypt", "--identity", key_file, file, output=back)
    assert sha256(back) == digest

    to = ("--recipient", str(theirs.recipient), "--recipient", str(ours.recipient))
    age("--encrypt", *to, plain, output=file)
    assert decrypted(file, ours) == decrypted(file, theirs) == digest
    age("--encrypt", "--armor", *to, plain, output=file)
    assert decrypted(file, ours, armored=True) == digest


def test_passphrases_both_ways(tmp_path: Path) -> None:
    """At the cost that age itself writes."""
    plain, file, back = tmp_path / "plain", tmp_path / "file.age", tmp_path / "back"
    digest = make(plain, 1000)
    passphrase = Passphrase(PASSPHRASE, Scrypt(memory=256 * MIB))

    encrypt(plain, file, passphrase)
    age_asking("--decrypt", "--output", back, file)
    assert sha256(back) == digest

    age_asking("--passphrase", "--output", file, plain)
    assert decrypted(file, passphrase) == digest
