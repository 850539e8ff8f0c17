"""The master secret in use: the database names the one to seal with, for all processes at once.

Each transaction that seals reads it under a shared lock held to its end, and a rotation changes it
under an exclusive one: what is committed after the rotation is sealed under the new secret, even by
a process that has not been told yet.
"""

from __future__ import annotations

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from on_api.core.crypto.sealing import Sealed, Sealer
from on_api.core.crypto.secrets import Keyring, Purpose
from on_api.core.errors import SecretUnavailable
from on_api.core.models import SecretInUse
from on_api.core.models.database import insert_unless_there

_VERSION = "on_api_secret_in_use"


class RowSealer:
    """Sealer of row values for one purpose."""

    def __init__(self, keyring: Keyring, purpose: Purpose) -> None:
        self._keyring = keyring
        self._sealer = Sealer(keyring, purpose)

    def seal(self, session: Session, plaintext: bytes, context: bytes) -> Sealed:
        """Seal a value; it opens only with the same `context`. The session must be one that writes.
        Raises `SecretUnavailable` where the secret in use is not here."""
        return self._sealer.seal(plaintext, context, version_in_use(session, self._keyring))

    def open(self, sealed: Sealed, context: bytes) -> bytes:
        """Return the plain value. Raises what `Sealer.open` raises."""
        return self._sealer.open(sealed, context)


def version_in_use(session: Session, keyring: Keyring) -> int:
    """Return the version of the secret to seal with in this transaction, which must be one that
    writes. The first call in a new deployment puts the latest secret into use.

    Raises `SecretUnavailable` where the secret in use is not here: other processes could not open
    what another one had sealed.
    """
    known: int | None = session.info.get(_VERSION)
    if known is not None:
        return known
    if keyring.problem is not None:
        raise SecretUnavailable
    version = session.scalar(_in_use().with_for_update(read=True))
    if version is None:
        insert_unless_there(session, SecretInUse, id=1, version=keyring.latest)
        version = session.scalars(_in_use().with_for_update(read=True)).one()
    if not keyring.use(version):
        raise SecretUnavailable
    session.info[_VERSION] = version
    return version


def learn_version_in_use(session: Session, keyring: Keyring) -> bool:
    """Tell the keyring which secret is in use, for work outside a sealing transaction: key
    look-ups, cursors. Returns whether that secret is here."""
    version = session.scalar(_in_use())
    return version is None or keyring.use(version)


def _in_use() -> Select[int]:
    return select(SecretInUse.version)
