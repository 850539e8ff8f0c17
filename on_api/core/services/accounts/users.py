"""Accounts: creating, listing, changing and deleting."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, joinedload

from on_api.core.crypto.passwords import PasswordHasher
from on_api.core.errors import Conflict, NotFound, Unauthorized
from on_api.core.limit_settings import LimitsSettings
from on_api.core.models import ApiKey, IdempotencyRecord, Identity, User, UserUsage
from on_api.core.models.database import new_id, utc_now
from on_api.core.models.invalidation import Invalidations
from on_api.core.services.accounts import audit
from on_api.core.services.accounts.audit import Actor
from on_api.core.services.accounts.keys import KeyService
from on_api.core.services.content import contents
from on_api.core.services.shared.paging import Listing


class UserService:
    """Service that creates and changes accounts."""

    def __init__(
        self,
        hasher: PasswordHasher,
        keys: KeyService,
        invalidations: Invalidations,
        settings: LimitsSettings,
    ) -> None:
        self._hasher = hasher
        self._keys = keys
        self._invalidations = invalidations
        self._limits = {
            "storage_quota": settings.new_account_quota,
            "egress_budget": settings.new_account_budget,
        }

    def hash_password(self, password: str) -> str:
        """Return the hash to store, for commands. Slow on purpose: call it before the transaction;
        requests use `LoginService.hash_password`."""
        return self._hasher.hash(password)

    def create(
        self,
        session: Session,
        username: str,
        password_hash: str | None,
        actor: Actor,
        *,
        is_admin: bool = False,
        limits: Mapping[str, int | None] | None = None,
    ) -> User:
        """Create an account. Without a password hash it allows no login. `limits` may have
        `storage_quota` and `egress_budget`; one that is left out is the operator's default. Raises
        `Conflict` for a taken name."""
        username = username.lower()
        _claim_name(session, username)
        user = User(
            id=new_id(),
            username=username,
            password_hash=password_hash,
            is_admin=is_admin,
            active=True,
            **self._limits | dict(limits or {}),
        )
        user.usage = UserUsage(file_count=0, storage_bytes=0, reserved_bytes=0)
        session.add(user)
        session.flush()
        audit.record(session, actor, "user.create", "user", user.id, is_admin=is_admin)
        return user

    def change(
        self,
        session: Session,
        user_id: uuid.UUID,
        changes: Mapping[str, Any],
        actor: Actor,
        *,
        verified: str | None = None,
    ) -> User:
        """Set quota, budget, `active`, `is_admin` or `password_hash`.

        A new password or deactivation ends every login; deactivation also stops the keys while it
        lasts. `verified`: the hash that the user's own password was checked against before. Raises
        `NotFound`, `Unauthorized` when the password has changed since, or `Conflict` when no
        administrator would be left.
        """
        ends = changes.get("active") is False or changes.get("is_admin") is False
        user = _lock(session, user_id, administrators=ends)
        if verified is not None:
            require_password(session, user_id, verified)
        for name, value in changes.items():
            setattr(user, name, value)
        if "password_hash" in changes or changes.get("active") is False:
            self._keys.revoke_tokens(session, user_id)
        if ends:
            _keep_an_administrator(session)
        audit.record(session, actor, "user.change", "user", user.id, fields=sorted(changes))
        self._invalidations.announce(session)
        session.flush()
        return user

    def rename(self, session: Session, user_id: uuid.UUID, username: str, actor: Actor) -> User:
        """Rename an account. Raises `NotFound`, or `Conflict` for a taken name."""
        user = get_user(session, user_id, lock=True)
        username = username.lower()
        if username != user.username:
            _claim_name(session, username)
            user.username = username
            audit.record(session, actor, "user.rename", "user", user.id)
            self._invalidations.announce(session)
            session.flush()
        return user

    def delete(self, session: Session, user_id: uuid.UUID, actor: Actor) -> None:
        """Begin the removal of an account: from this commit on it can do nothing and is not
        visible.

        Its keys are deleted at once, and so are its identities: its private files can no longer be
        read. The worker removes files and holdings later (`worker/removal.py`). Raises `NotFound`,
        or `Conflict` for the last active administrator.
        """
        user = _lock(session, user_id, administrators=True)
        user.deleted_at = utc_now()
        user.active = False
        # Frees the name; no user can register this one.
        user.username = f"deleted/{user.id}"
        _keep_an_administrator(session)
        session.query(ApiKey).filter(ApiKey.user_id == user_id).delete()
        session.query(Identity).filter(Identity.user_id == user_id).delete()
        # Their answers may hold a key or an identity.
        session.query(IdempotencyRecord).filter(IdempotencyRecord.user_id == user_id).delete()
        audit.record(session, actor, "user.delete", "user", user.id)
        self._invalidations.announce(session)


def get_user(session: Session, user_id: uuid.UUID, *, lock: bool = False) -> User:
    """Return one account with its usage. Raises `NotFound`."""
    statement = select(User).where(User.id == user_id, User.deleted_at.is_(None))
    # A row lock can't reach over the join: the usage is then read separately.
    user = session.scalar(
        statement.with_for_update().execution_options(populate_existing=True)
        if lock
        else statement.options(joinedload(User.usage))
    )
    if user is None:
        raise NotFound
    return user


def require_password(session: Session, user_id: uuid.UUID, verified: str) -> None:
    """Raise `Unauthorized` unless the user's password hash is still `verified`, against which the
    password was checked before the transaction. The account stays locked to the transaction's
    end."""
    if get_user(session, user_id, lock=True).password_hash != verified:
        raise Unauthorized("The password has been changed in the meantime.")


def find_user(session: Session, username: str) -> User:
    """Return one account by its name. Raises `NotFound`."""
    user = session.scalar(
        select(User).where(User.username == username.lower(), User.deleted_at.is_(None))
    )
    if user is None:
        raise NotFound(f"There is no user {username}.")
    return user


def all_users() -> Listing[User]:
    """List all accounts."""
    statement = select(User).where(User.deleted_at.is_(None)).options(joinedload(User.usage))
    return Listing(statement, User.created_at, User.id)


def _claim_name(session: Session, username: str) -> None:
    """Raise `Conflict` for a taken name. Of two simultaneous claims the unique index refuses the
    second."""
    if session.scalar(select(User.id).where(User.username == username)) is not None:
        raise Conflict("This username is already taken.")


def _lock(session: Session, user_id: uuid.UUID, *, administrators: bool) -> User:
    """Lock an account in the common order: its counters first, since an upload that has locked them
    locks its key and refers to its user next. `administrators`: lock all of them too, in one order,
    so that two can't remove each other at the same moment. Raises `NotFound`."""
    get_user(session, user_id)
    contents.lock_usage(session, user_id)
    if administrators:
        session.execute(_administrators().order_by(User.id).with_for_update())
    return get_user(session, user_id, lock=True)


def _keep_an_administrator(session: Session) -> None:
    session.flush()
    if session.scalar(_administrators().limit(1)) is None:
        raise Conflict("This user is the last active administrator.")


def _administrators() -> Select[uuid.UUID]:
    return select(User.id).where(User.is_admin, User.active, User.deleted_at.is_(None))
