"""Which master secret seals: the database says so, for all processes at once.

Each transaction that seals reads it under a lock that it shares until its end, and a rotation
changes it under one that it doesn't: what is committed after that is sealed under the new secret,
also by a process that has heard nothing yet.
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
    """Seals for one purpose what goes into rows."""

    def __init__(self, keyring: Keyring, purpose: Purpose) -> None:
        self._keyring = keyring
        self._sealer = Sealer(keyring, purpose)

    def seal(self, session: Session, plain: bytes, context: bytes) -> Sealed:
        """Opens only with the same `context`. To be committed by the session, which writes. Raises
        `SecretUnavailable` where the secret in use is not here."""
        return self._sealer.seal(plain, context, version_in_use(session, self._keyring))

    def open(self, sealed: Sealed, context: bytes) -> bytes:
        """What was sealed. Raises as `Sealer.open` does."""
        return self._sealer.open(sealed, context)


def version_in_use(session: Session, keyring: Keyring) -> int:
    """The version of the secret that this transaction, one that writes, has to seal with. The first
    who asks in a new deployment puts the latest secret into use.

    Raises `SecretUnavailable` where that secret is not here: what is sealed with another one could
    not be opened by the others.
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
    """Tell the keyring which secret is in use, for what isn't sealed in a transaction: the keys
    that are looked for, cursors. Returns whether it is here."""
    version = session.scalar(_in_use())
    return version is None or keyring.use(version)


def _in_use() -> Select[int]:
    return select(SecretInUse.version)
