"""Users' X25519 identities, to which their private files are encrypted: made, imported, rotated,
opened. At rest their secrets are sealed under the master secret, each bound to its row.

A user may have several; one is active, and new files are encrypted to it. Files name the identity
that they were encrypted to, so identities are deleted only with their account.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from on_api.core.crypto.age import BadKey, X25519Identity
from on_api.core.crypto.sealing import Sealed
from on_api.core.crypto.secrets import Keyring, Purpose, UnknownSecretError
from on_api.core.errors import BadRequest, Conflict, SecretUnavailable
from on_api.core.models import Identity
from on_api.core.models.database import new_id
from on_api.core.services.accounts import audit
from on_api.core.services.accounts.access import owned
from on_api.core.services.accounts.audit import Actor
from on_api.core.services.accounts.master_secret import RowSealer
from on_api.core.services.accounts.users import get_user

MOST_IDENTITIES = 1000
"""Most identities of one user."""


class IdentityService:
    """Service for identities. `SecretUnavailable` is raised wherever the master secret that is
    needed is not here."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._sealer = RowSealer(keyring, Purpose.IDENTITIES)

    def active(self, session: Session, user_id: uuid.UUID) -> Identity:
        """Return the identity that new files are encrypted to; made if there is none yet.

        Raises `NotFound` for a user who is gone.
        """
        found = find_active(session, user_id)
        if found is None:
            # Locked, so that two first uploads don't make two, and that none outlives its account.
            get_user(session, user_id, lock=True)
            found = find_active(session, user_id) or self._make(session, user_id)
        return found

    def rotate(self, session: Session, user_id: uuid.UUID, actor: Actor) -> Identity:
        """Make a new identity the active one. Raises `Conflict` for too many."""
        get_user(session, user_id, lock=True)
        _make_room(session, user_id)
        _deactivate(session, user_id)
        identity = self._make(session, user_id)
        audit.record(session, actor, "identity.rotate", "identity", identity.id)
        return identity

    def add(
        self, session: Session, user_id: uuid.UUID, text: str, actor: Actor, *, active: bool
    ) -> Identity:
        """Import an identity (`AGE-SECRET-KEY-1…`), as the active one if wanted, or if there is
        none. One that the user has already is not stored twice.

        Raises `BadRequest` for a text that is no identity, `Conflict` for too many.
        """
        try:
            secret = X25519Identity.parse(text)
        except BadKey:
            raise BadRequest(
                "identity: must be an identity in age's format (as `age-keygen` prints it)."
            ) from None
        get_user(session, user_id, lock=True)
        recipient = str(secret.recipient)
        identity = session.scalar(_mine(user_id).where(Identity.recipient == recipient))
        active = active or find_active(session, user_id) is None
        if active:
            _deactivate(session, user_id)
        if identity is None:
            _make_room(session, user_id)
            identity = self._keep(session, user_id, secret, active=active)
        elif active:
            session.refresh(identity)
            identity.active = True
        session.flush()
        audit.record(session, actor, "identity.import", "identity", identity.id, active=active)
        return identity

    def export(
        self, session: Session, user_id: uuid.UUID, actor: Actor
    ) -> Sequence[tuple[Identity, X25519Identity]]:
        """Return all of a user's identities with their secrets, the active one first. One is made
        if there is none yet."""
        self.active(session, user_id)
        found = [(row, self.open(row)) for row in identities_of(session, user_id)]
        audit.record(session, actor, "identity.export", "user", user_id, count=len(found))
        return sorted(found, key=lambda pair: not pair[0].active)

    def open(self, row: Identity) -> X25519Identity:
        """Unseal an identity. Raises `SecretUnavailable`."""
        if self._keyring.problem is not None:
            raise SecretUnavailable
        try:
            secret = self._sealer.open(Sealed(row.secret_version, row.wrapped_secret), row.id.bytes)
        except (UnknownSecretError, ValueError):
            raise SecretUnavailable from None
        return X25519Identity(secret)

    def _make(self, session: Session, user_id: uuid.UUID) -> Identity:
        return self._keep(session, user_id, X25519Identity.generate(), active=True)

    def _keep(
        self, session: Session, user_id: uuid.UUID, secret: X25519Identity, *, active: bool
    ) -> Identity:
        identity_id = new_id()
        sealed = self._sealer.seal(session, secret.secret, identity_id.bytes)
        identity = Identity(
            id=identity_id,
            user_id=user_id,
            recipient=str(secret.recipient),
            wrapped_secret=sealed.data,
            secret_version=sealed.version,
            active=active,
        )
        session.add(identity)
        session.flush()
        return identity


def find_active(session: Session, user_id: uuid.UUID) -> Identity | None:
    """Return the active identity; None while the user has needed none."""
    return session.scalar(_mine(user_id).where(Identity.active))


def find_identity(session: Session, user_id: uuid.UUID, identity_id: uuid.UUID) -> Identity | None:
    """Return one of a user's identities, or None."""
    return session.scalar(_mine(user_id).where(Identity.id == identity_id))


def identities_of(session: Session, user_id: uuid.UUID) -> Sequence[Identity]:
    """Return all of a user's identities, newest first."""
    newest_first = (Identity.created_at.desc(), Identity.id.desc())
    return session.scalars(_mine(user_id).order_by(*newest_first)).all()


def _mine(user_id: uuid.UUID) -> Select[Identity]:
    return owned(select(Identity), Identity.user_id, user_id)


def _deactivate(session: Session, user_id: uuid.UUID) -> None:
    session.execute(
        update(Identity).where(Identity.user_id == user_id, Identity.active).values(active=False)
    )


def _make_room(session: Session, user_id: uuid.UUID) -> None:
    count = select(func.count()).select_from(Identity).where(Identity.user_id == user_id)
    if (session.scalar(count) or 0) >= MOST_IDENTITIES:
        raise Conflict(f"A user can have at most {MOST_IDENTITIES} identities.")
