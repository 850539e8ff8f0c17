"""Keys for the master secret in a backup, as commands are given them: by files, so that no secret
is among a process's arguments, and nobody is asked where nobody is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from on_api.core.errors import BadRequest

if TYPE_CHECKING:
    from on_api.core.crypto.age import Identity, Passphrase, Recipient
    from on_api.core.settings import Settings

MAX_BYTES = 64 * 1024


def recipients_of(
    settings: Settings,
    recipients: Sequence[str],
    passphrase_file: Path | None,
    *,
    without_secret: bool,
) -> Sequence[Recipient] | None:
    """Return who can open the copy of the master secret; None: it is left out. Raises `BadRequest`
    unless exactly one way was chosen."""
    from on_api.core.crypto.age import AgeError, X25519Recipient

    if bool(recipients) + (passphrase_file is not None) + without_secret != 1:
        raise BadRequest(
            "Say how the master secret is kept, by exactly one of --recipient age1… (a key of "
            "age's), --passphrase-file FILE, or --without-secret (you keep it elsewhere yourself: "
            "without it no key is valid, and no private file can be read)."
        )
    if passphrase_file is not None:
        return [_passphrase(settings, passphrase_file)]
    try:
        return [X25519Recipient.parse(each) for each in recipients] or None
    except AgeError as error:
        raise BadRequest(f"--recipient: {error}") from None


def identities_of(
    settings: Settings, identity: Path | None, passphrase_file: Path | None
) -> Sequence[Identity]:
    """Return what opens the copy of the master secret; empty when nothing was given. Raises
    `BadRequest` for a file without a usable key, or for both."""
    from on_api.core.crypto.age import AgeError, X25519Identity

    if identity is not None and passphrase_file is not None:
        raise BadRequest("Give one of --identity and --passphrase-file: one opens the secret.")
    if passphrase_file is not None:
        return [_passphrase(settings, passphrase_file)]
    if identity is None:
        return []
    lines = [line.strip() for line in _read(identity, "--identity").splitlines()]
    try:
        found = [X25519Identity.parse(line) for line in lines if line and line[0] != "#"]
    except AgeError as error:
        raise BadRequest(f"--identity: {identity} holds no identity of age's ({error})") from None
    if not found:
        raise BadRequest(f"--identity: {identity} holds no identity of age's.")
    return found


def _passphrase(settings: Settings, path: Path) -> Passphrase:
    from on_api.core.crypto.age import DEFAULT_LOG_N, AgeError, Passphrase
    from on_api.core.crypto.kdf import Scrypt, memory_needed

    text = _read(path, "--passphrase-file").rstrip("\r\n")
    # Whatever the settings allow the server: here it is one passphrase, once.
    scrypt = Scrypt(memory=memory_needed(DEFAULT_LOG_N))
    try:
        return Passphrase(text, scrypt, log_n=settings.auth.passphrase_log_n)
    except AgeError as error:
        raise BadRequest(f"--passphrase-file: {error}") from None


def _read(path: Path, option: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode()
    except OSError as error:
        raise BadRequest(f"{option}: can't read {path} ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise BadRequest(f"{option}: {path} is no text.") from None
