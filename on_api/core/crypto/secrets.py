"""The server's master secret and the subkeys derived from it, one for each purpose.

Nothing outside this module sees the master secret itself.
"""

from __future__ import annotations

import os
import secrets
from enum import StrEnum
from pathlib import Path

from on_api.core.crypto.kdf import hkdf
from on_api.core.errors import StartupError
from on_api.core.settings import Settings

SECRET_FILE = "secret.key"  # noqa: S105 (a file's name)
CURRENT_VERSION = 1
"""Version of the master secret, kept in each row that depends on it so that rotation can find
them."""


class Purpose(StrEnum):
    """What a subkey is for. The words are part of the derivation: changing one loses what it
    protects."""

    API_KEYS = "api-keys"
    NODE_RPC = "node-rpc"
    CURSORS = "cursors"
    ANSWERS = "answers"


class MasterSecret:
    """The master secret, from which each purpose gets a subkey of its own (HKDF-SHA256, RFC
    5869)."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def load(cls, settings: Settings) -> MasterSecret:
        """Read it from `ON_API_SECRET_KEY`, else from `$ON_API_HOME/secret.key`.

        Raises `StartupError` with the cure when there is none: a usable default does not exist.
        """
        if settings.secret_key is not None:
            return cls(settings.secret_key.get_secret_value().encode())
        path = settings.home / SECRET_FILE
        try:
            secret = path.read_bytes().strip()
        except FileNotFoundError:
            raise StartupError(
                f"There is no master secret: run `on-api init` to make {path}, "
                "or set ON_API_SECRET_KEY."
            ) from None
        except OSError as error:
            raise StartupError(f"Can't read the master secret {path}: {error.strerror}.") from error
        if len(secret) < 32:
            raise StartupError(
                f"The master secret in {path} is too short to be whole; restore it from a backup "
                "(what it protects can't be read with another one)."
            )
        return cls(secret)

    def subkey(self, purpose: Purpose) -> bytes:
        """32 bytes for one purpose."""
        info = f"{purpose}/v{CURRENT_VERSION}".encode()
        return hkdf(self._secret, salt=b"on-api", info=info)


def create_secret_file(home: Path) -> bool:
    """Make `home/secret.key` (mode 0600) unless it is there. Returns whether it was made."""
    path = home / SECRET_FILE
    if path.exists():
        return False
    # Written aside and renamed: a kill in between must not leave an empty secret for the next
    # start.
    draft = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(48) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return True


def node_rpc_auth(settings: Settings) -> str:
    """The secret between on-api and the node that it runs, as Kubo's `API.Authorizations` spells
    it."""
    return f"bearer:{MasterSecret.load(settings).subkey(Purpose.NODE_RPC).hex()}"
