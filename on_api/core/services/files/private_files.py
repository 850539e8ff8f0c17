"""Private files: the audience of one, and the keys to write and to open it. Slow work runs in
threads, scrypt in `ScryptPool`.

Bytes are handled in `intake.py` and `reading.py`.
"""

from __future__ import annotations

import hmac
import secrets
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from anyio import to_thread

from on_api.core.crypto.age import (
    DEFAULT_LOG_N,
    AgeError,
    BadPassphrase,
    Encryptor,
    Identity,
    Passphrase,
    Recipient,
    Unlocked,
    WorkFactorTooHigh,
    X25519Identity,
    X25519Recipient,
    unlock,
)
from on_api.core.crypto.kdf import Scrypt, memory_needed
from on_api.core.crypto.secrets import Keyring, Purpose
from on_api.core.errors import (
    BadRequest,
    ContentDamaged,
    NotFound,
    PassphraseNeeded,
    ServiceUnavailable,
    WrongPassphrase,
)
from on_api.core.models import Database, File
from on_api.core.models.file import (
    FOR_OWNER,
    FOR_PASSPHRASE,
    FOR_RECIPIENTS,
    PRIVATE,
    PUBLIC,
)
from on_api.core.services.accounts.scrypt_pool import Asker, ScryptPool
from on_api.core.services.accounts.strangers import Strangers
from on_api.core.services.accounts.throttling import Throttle
from on_api.core.services.content.reservations import Announced
from on_api.core.services.files.identities import IdentityService, find_active, find_identity
from on_api.core.setting_groups import MIB

CHEAPEST_LOG_N = 10
"""Lowest cost that the settings allow, written with as many digits as the highest."""


@dataclass(frozen=True, slots=True)
class Audience:
    """Parties who can open a private file: its owner (with `owner_access`) and `recipients`, or
    those who know the `passphrase`."""

    recipients: tuple[str, ...] = ()
    owner_access: bool = True
    passphrase: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raise `BadRequest` for settings that exclude each other."""
        if self.passphrase is not None and (self.recipients or not self.owner_access):
            raise BadRequest("A passphrase can't be combined with recipients or owner_access.")
        if not self.owner_access and not self.recipients:
            raise BadRequest(
                "owner_access=false requires recipients; otherwise nobody could decrypt the file."
            )

    @property
    def sealed_for(self) -> str:
        """Value for `File.sealed_for`."""
        if self.passphrase is not None:
            return FOR_PASSPHRASE
        return FOR_OWNER if self.owner_access else FOR_RECIPIENTS

    def announce(self, plaintext: Announced) -> Announced:
        """Return the length of the encrypted file, where the plaintext's length is known."""
        if plaintext.most is None:
            return plaintext
        overhead = _start_size(len(self.recipients) + self.owner_access, self.passphrase is None)
        return Announced(*(overhead(size) for size in (plaintext.least, plaintext.most)))


@dataclass(frozen=True, slots=True)
class Sealing:
    """Encryption of a private file about to be written. `identity_id`: the owner's, if it is one of
    the keys."""

    encryptor: Encryptor
    sealed_for: str
    identity_id: uuid.UUID | None


class PrivateFiles:
    """Provider of the means to write and to open private files."""

    def __init__(
        self,
        database: Database,
        identities: IdentityService,
        keyring: Keyring,
        scrypt: Scrypt,
        pool: ScryptPool,
        throttle: Throttle,
        strangers: Strangers,
        log_n: int,
    ) -> None:
        self._database = database
        self._identities = identities
        self._keyring = keyring
        self._scrypt = scrypt
        self._log_n = log_n
        self._pool = pool
        self._throttle = throttle
        self._strangers = strangers
        self._fleeting = secrets.token_bytes(32)
        """Key of the digests that recognise equal passphrases sent at once."""

    async def seal(self, user_id: uuid.UUID, audience: Audience) -> Sealing:
        """Begin to encrypt a user's file.

        Raises `SecretUnavailable` where its owner could not open it, and with a passphrase what
        `ScryptPool.run` raises.
        """
        if audience.passphrase is not None:
            passphrase = Passphrase(audience.passphrase, self._scrypt, log_n=self._log_n)
            try:
                encryptor = await self._pool.run(
                    Asker.user(user_id, None),
                    lambda: Encryptor([passphrase]),
                    memory=memory_needed(self._log_n),
                )
            except WorkFactorTooHigh:
                raise _needs_more_memory() from None
            return Sealing(encryptor, FOR_PASSPHRASE, None)
        return await to_thread.run_sync(self._seal, user_id, audience)

    async def unlock(self, file: File, passphrase: str | None, asker: Asker | None) -> Unlocked:
        """Open a file that is encrypted to its owner or with a passphrase. `asker` has sent the
        passphrase; None: on-api itself opens the file.

        Raises `PassphraseNeeded`, `WrongPassphrase`, `TooManyRequests` after too many wrong ones
        from the asker's network (see `Throttle`), `SecretUnavailable`, `ContentDamaged`, `NotFound`
        when the owner's identity is gone, and what `ScryptPool.run` raises.
        """
        if file.sealed_for != FOR_PASSPHRASE:
            if asker is None or asker.known:
                return await to_thread.run_sync(self._unlock_own, file)
            return await self._strangers.in_thread(self._unlock_own, file)
        if passphrase is None or asker is None:
            raise PassphraseNeeded
        # The cost was set when the file was written: `Scrypt` knows whether there is memory for it.
        given = Passphrase(passphrase, self._scrypt)
        same = hmac.digest(self._fleeting, f"{file.id} {file.cid} {passphrase}".encode(), "sha256")
        try:
            return await self._pool.run(
                asker,
                lambda: self._unlock_by_passphrase(file, given, asker.network),
                memory=memory_needed(DEFAULT_LOG_N),
                same=same,
            )
        except WorkFactorTooHigh:
            raise _needs_more_memory() from None

    def stranger(self, file: File, address: str | None) -> Asker:
        """Return the asker for opening a file by a link, from an address."""
        return self._throttle.asker(_subject(file), address)

    def passphrase_digests(self, audience: Audience | None) -> Sequence[bytes]:
        """Return HMACs by which a repeated passphrase is recognised, under each master secret here,
        the present one first; empty ones without a passphrase."""
        if audience is None or audience.passphrase is None:
            return [b""] * len(self._keyring.versions)
        passphrase = audience.passphrase.encode()
        keys = self._keyring.subkeys(Purpose.FINGERPRINTS)
        return [hmac.digest(key, passphrase, "sha256") for key in keys]

    def _seal(self, user_id: uuid.UUID, audience: Audience) -> Sealing:
        recipients: list[Recipient] = [X25519Recipient.parse(text) for text in audience.recipients]
        identity_id = None
        if audience.owner_access:
            identity_id, own = self._active(user_id)
            # Not the recipient stored beside it: a file that can't be opened must not be written.
            recipients.insert(0, own.recipient)
        return Sealing(Encryptor(recipients), audience.sealed_for, identity_id)

    def _active(self, user_id: uuid.UUID) -> tuple[uuid.UUID, X25519Identity]:
        with self._database.session_scope(write=False) as session:
            row = find_active(session, user_id)
            if row is not None:
                return row.id, self._identities.open(row)
        with self._database.session_scope() as session:
            row = self._identities.active(session, user_id)
            return row.id, self._identities.open(row)

    def _unlock_own(self, file: File) -> Unlocked:
        with self._database.session_scope(write=False) as session:
            row = None
            if file.identity_id is not None:
                row = find_identity(session, file.user_id, file.identity_id)
            if row is None:
                raise NotFound  # gone with its account
            identity = self._identities.open(row)
        return _unlock(file, [identity])

    def _unlock_by_passphrase(self, file: File, given: Passphrase, network: str) -> Unlocked:
        with self._throttle.one_try(_subject(file), network, wrong=WrongPassphrase):
            return _unlock(file, [given])


def _subject(file: File) -> str:
    """Return the subject under which tries of a file's passphrase are counted."""
    return f"file:{file.id}"


def _needs_more_memory() -> ServiceUnavailable:
    return ServiceUnavailable(
        "This passphrase's work factor requires more memory than the server allows."
    )


def columns_of(sealing: Sealing | None, stored_size: int) -> dict[str, Any]:
    """Return the columns of a file's row that say whether it is public (`sealing` None) or private.
    `stored_size`: its bytes on the node."""
    return {
        "visibility": PUBLIC if sealing is None else PRIVATE,
        "sealed_for": sealing and sealing.sealed_for,
        "identity_id": sealing and sealing.identity_id,
        "sealed_size": sealing and stored_size,
        "sealed_start": sealing and sealing.encryptor.start,
        "blocks_known": None,
    }


def _unlock(file: File, identities: Sequence[Identity]) -> Unlocked:
    try:
        return unlock(file.sealed_start or b"", identities)
    except BadPassphrase:
        raise WrongPassphrase from None
    except WorkFactorTooHigh:
        raise
    except AgeError as error:
        raise ContentDamaged from error


@cache
def _start_size(recipients: int, by_key: bool) -> Callable[[int], int]:
    """Return a function from a plaintext's size to the file's, in bytes. Found by beginning such a
    file, since all of a kind have beginnings of equal length."""
    keys: list[Recipient] = [X25519Identity.generate().recipient for _ in range(recipients)]
    if not by_key:
        keys = [Passphrase("x", Scrypt(memory=MIB), log_n=CHEAPEST_LOG_N)]
    return Encryptor(keys).sealed_size
