"""The server's master secret, the subkeys derived from it, one for each purpose, and its rotation.

No other module sees a master secret itself.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import secrets
from collections.abc import Container, Iterable, Sequence
from enum import StrEnum
from pathlib import Path

from on_api.core.crypto.age import Decryptor, Encryptor, Identity, Recipient
from on_api.core.crypto.kdf import KEY_BYTES, hkdf
from on_api.core.durable_files import replace_file, sync
from on_api.core.errors import StartupError
from on_api.core.settings import Settings

logger = logging.getLogger(__name__)

SECRET_FILE = "secret.key"  # noqa: S105 (a file's name)
PREVIOUS_FILE = "secret.key.previous"
"""Name of the file of secrets that rows still need after a rotation, one per line."""
MIN_LENGTH = 32


class Purpose(StrEnum):
    """Purpose of a subkey. The words are part of the derivation: changing one makes the data that
    it protects unreadable."""

    API_KEYS = "api-keys"
    CURSORS = "cursors"
    ANSWERS = "answers"
    IDENTITIES = "identities"
    FINGERPRINTS = "fingerprints"
    IMPORTS = "imports"


class UnknownSecretError(Exception):
    """A row belongs to a master secret that is not loaded."""


class MasterSecret:
    """One master secret, from which each purpose gets a subkey of its own (HKDF-SHA256, RFC
    5869)."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.version = int.from_bytes(self._derive("version")[:4], "big") >> 1
        """Name of the secret in each row that depends on it: the same number for every holder of
        the secret."""
        self._subkeys: dict[Purpose, bytes] = {}

    def subkey(self, purpose: Purpose) -> bytes:
        """Return the 32 bytes of one purpose's subkey."""
        # Cached: deriving it takes longer than all other work to recognise a key.
        known = self._subkeys.get(purpose)
        if known is None:
            known = self._subkeys[purpose] = self._derive(f"{purpose}/v1")
        return known

    def is_same(self, other: MasterSecret) -> bool:
        """Return whether both are the same secret, in constant time."""
        return hmac.compare_digest(self._secret, other._secret)

    def _derive(self, info: str) -> bytes:
        return hkdf(self._secret, salt=b"on-api", info=info.encode())


class Keyring:
    """The loaded master secrets: the latest one, and previous ones that rows still need.
    Thread-safe.

    The database decides which of them is in use (`accounts/master_secret.py`), and `use` sets it.
    `problem` says, for a person, why nothing that secrets protect is available.
    """

    def __init__(
        self,
        current: MasterSecret,
        previous: Sequence[MasterSecret] = (),
        *,
        source: Settings | None = None,
        problem: str | None = None,
    ) -> None:
        self._secrets = (current, *previous)
        self._source = source
        self._stamp = None if source is None else _stamp(source)
        self._used: int | None = None
        self.problem = problem
        self.warning = problem
        """Trouble found at the start, a problem or not, for reports to the operator."""

    @classmethod
    def load(cls, settings: Settings) -> Keyring:
        """Load from `ON_API_SECRET_KEY` and `ON_API_PREVIOUS_SECRET_KEYS`, else from the files in
        `$ON_API_HOME`.

        Raises `StartupError` with the remedy when there is none: a usable default does not exist.
        """
        if settings.secret_key is not None:
            previous = [secret.get_secret_value() for secret in settings.previous_secret_keys]
            current = settings.secret_key.get_secret_value()
            return cls(_secret(current), [_secret(text) for text in previous])
        present = _secret(_read_secret(settings.home / SECRET_FILE))
        before = [_secret(line) for line in _lines(settings.home / PREVIOUS_FILE)]
        # A rotation that was killed midway leaves the present one among them.
        return cls(present, [each for each in before if not each.is_same(present)], source=settings)

    @classmethod
    def without_secret(cls, problem: str) -> Keyring:
        """Return a keyring that opens nothing, for a service that goes on with what needs no
        secret."""
        return cls(MasterSecret(secrets.token_bytes(KEY_BYTES)), problem=problem)

    @property
    def latest(self) -> int:
        """Version of the first secret: the one in use, or the one that a rotation is about to put
        into use."""
        return self._secrets[0].version

    @property
    def version(self) -> int:
        """Version of the secret in use as far as this process knows: the latest until `use` is
        called."""
        here, used = self._secrets, self._used
        if used in {None, here[0].version}:  # nearly always
            return here[0].version
        return next((each.version for each in here if each.version == used), here[0].version)

    @property
    def versions(self) -> Sequence[int]:
        """Versions of all loaded secrets, the one in use first."""
        return [secret.version for secret in self._in_order()]

    @property
    def lacks_the_one_in_use(self) -> bool:
        """True if the database was last seen to use a secret that is not loaded."""
        used = self._used
        return used is not None and all(each.version != used for each in self._secrets)

    def use(self, version: int) -> bool:
        """Set the version in use. Returns whether that secret is loaded, if necessary after
        `refresh`."""
        self._used = version
        return not self.lacks_the_one_in_use or (self.refresh() and not self.lacks_the_one_in_use)

    def subkey(self, purpose: Purpose, version: int | None = None) -> bytes:
        """Return the 32 bytes of one purpose's subkey, from the secret in use or that of a version.

        Raises `UnknownSecretError` for a version that is not loaded, even after `refresh`.
        """
        wanted = self.version if version is None else version
        for secret in self._secrets:
            if secret.version == wanted:
                return secret.subkey(purpose)
        if self.refresh():
            return self.subkey(purpose, version)
        raise UnknownSecretError

    def subkeys(self, purpose: Purpose) -> Sequence[bytes]:
        """Return one purpose's subkeys of all loaded secrets, that of the one in use first."""
        return [secret.subkey(purpose) for secret in self._in_order()]

    def refresh(self) -> bool:
        """Read the files again if they have changed: another process may have rotated the secret.
        Returns whether they had. If they can't be read, the loaded secrets stay."""
        if self._source is None or (stamp := _stamp(self._source)) == self._stamp:
            return False
        try:
            found = Keyring.load(self._source)._secrets
        except StartupError as error:
            logger.warning("can't read the master secret again: %s", error.details)
            found = self._secrets
        self._stamp = stamp
        self._secrets = found
        return True

    def _in_order(self) -> Sequence[MasterSecret]:
        used = self._used
        return sorted(self._secrets, key=lambda secret: secret.version != used)


def create_secret_file(home: Path) -> bool:
    """Create `home/secret.key` (mode 0600) unless it exists. Returns whether it was created."""
    path = home / SECRET_FILE
    if path.exists():
        return False
    _write(path, [secrets.token_urlsafe(48)])
    return True


def rotate_secret_file(home: Path) -> None:
    """Create a new `home/secret.key`; the previous secret is kept beside it for as long as rows
    need it.

    No secret is lost if this is killed: the old one is saved before it is replaced. The caller
    ensures that only one rotation runs at a time (`accounts/rotation.py`).
    """
    present = _read_secret(home / SECRET_FILE)
    _write(home / PREVIOUS_FILE, dict.fromkeys([present, *_lines(home / PREVIOUS_FILE)]))
    _write(home / SECRET_FILE, [secrets.token_urlsafe(48)])


def keep_previous(home: Path, needed: Container[int]) -> None:
    """Drop the previous secrets whose versions are not `needed`."""
    path = home / PREVIOUS_FILE
    lines = _lines(path)
    kept = [line for line in lines if _secret(line).version in needed]
    if kept:
        _write(path, kept)
    elif lines:
        path.unlink()
        sync(home)


class SecretCopy:
    """Copy of a deployment's master secrets, the latest one first, as a backup keeps it."""

    def __init__(self, lines: Sequence[str]) -> None:
        """Take the secrets, one a line. Raises `StartupError` for none, or one that is cut."""
        if not lines or any(len(line) < MIN_LENGTH for line in lines):
            raise StartupError("The copy of the master secret is not whole.")
        self._lines = list(dict.fromkeys(lines))

    def __repr__(self) -> str:
        return f"SecretCopy(versions={self.versions})"

    @classmethod
    def of(cls, settings: Settings) -> SecretCopy:
        """Copy what this deployment uses: the settings' secrets, else those of the home. Raises
        `StartupError` when there is none."""
        if settings.secret_key is not None:
            given = (settings.secret_key, *settings.previous_secret_keys)
            return cls([each.get_secret_value() for each in given])
        return cls.of_home(settings.home)

    @classmethod
    def of_home(cls, home: Path) -> SecretCopy:
        """Copy the secrets in a home's files. Raises `StartupError` when there is none."""
        return cls([_read_secret(home / SECRET_FILE), *_lines(home / PREVIOUS_FILE)])

    @classmethod
    def of_file(cls, path: Path) -> SecretCopy:
        """Read a file as `secret.key` is, or with previous secrets on further lines. Raises
        `StartupError` when it can't be read."""
        _read_secret(path)
        return cls(_lines(path))

    @classmethod
    def opened(cls, sealed: bytes, identities: Sequence[Identity]) -> SecretCopy:
        """Open what `sealed_for` has returned. Raises `AgeError`."""
        decryptor = Decryptor(identities)
        plain = decryptor.update(sealed) + decryptor.finish()
        return cls([str(line) for line in json.loads(plain)])

    def sealed_for(self, recipients: Sequence[Recipient]) -> bytes:
        """Return an age file of the secrets. Raises what `Encryptor` raises."""
        encryptor = Encryptor(recipients)
        # JSON: a secret of the environment may have blanks in it.
        plain = json.dumps(self._lines).encode()
        return bytes(encryptor.update(plain) + encryptor.finish())

    @property
    def versions(self) -> Sequence[int]:
        """Versions of the secrets, the latest first."""
        return [_secret(line).version for line in self._lines]

    def put_into(self, home: Path) -> None:
        """Write the home's files of secrets (mode 0600)."""
        if len(self._lines) > 1:
            _write(home / PREVIOUS_FILE, self._lines[1:])
        _write(home / SECRET_FILE, self._lines[:1])


def _secret(text: str) -> MasterSecret:
    return MasterSecret(text.encode())


def _read_secret(path: Path) -> str:
    try:
        secret = path.read_text().strip()
    except FileNotFoundError:
        raise StartupError(
            f"There is no master secret: run `on-api init` to make {path}, "
            "or set ON_API_SECRET_KEY."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not valid text"
        raise StartupError(f"Can't read the master secret {path}: {reason}.") from error
    if len(secret) < MIN_LENGTH:
        raise StartupError(
            f"The master secret in {path} is too short and must be incomplete: restore it from"
            " a backup. Data that it protects can't be read with another secret."
        )
    return secret


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return []
    return [line for line in lines if len(line) >= MIN_LENGTH]


def _write(path: Path, lines: Iterable[str]) -> None:
    # A kill in between must not leave an empty secret for the next start, and the new name has to
    # survive a power cut before anything is sealed with the secret in that file.
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    replace_file(path, "".join(f"{line}\n" for line in lines).encode(), draft)


def _stamp(settings: Settings) -> tuple[tuple[int, int], ...]:
    """Return a stamp that changes when a file of secrets does."""

    def of(name: str) -> tuple[int, int]:
        try:
            stat = (settings.home / name).stat()
        except OSError:
            return 0, 0
        # The inode as well: two files written in one tick of the clock have the same time.
        return stat.st_ino, stat.st_mtime_ns

    return of(SECRET_FILE), of(PREVIOUS_FILE)
