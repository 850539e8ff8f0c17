"""API keys: creating, listing and revoking. Keys are checked in `authentication.py`."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache

from sqlalchemy import BindParameter, ColumnElement, Select, and_, bindparam, or_, select
from sqlalchemy.orm import Session

from on_api.core.crypto import tokens
from on_api.core.crypto.secrets import Keyring, Purpose
from on_api.core.errors import BadRequest, Forbidden, NotFound, Unauthorized
from on_api.core.models import ApiKey, User
from on_api.core.models.database import new_id, utc_now
from on_api.core.models.invalidation import Invalidations
from on_api.core.models.key import KEY
from on_api.core.services.accounts import audit
from on_api.core.services.accounts.access import Principal, Scope, owned
from on_api.core.services.accounts.audit import Actor
from on_api.core.services.accounts.master_secret import version_in_use
from on_api.core.services.shared.paging import Listing


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """Properties of a new key. `max_bytes` limits the bytes uploaded in all, `egress_budget` the
    bytes downloaded in a calendar month."""

    name: str
    scopes: frozenset[Scope]
    expires_at: datetime | None = None
    max_uses: int | None = None
    max_bytes: int | None = None
    egress_budget: int | None = None

    @property
    def limited(self) -> bool:
        """True if use alone can exhaust the key, for good or until the next month."""
        limits = (self.max_uses, self.max_bytes, self.egress_budget)
        return any(limit is not None for limit in limits)


class KeyService:
    """Service that creates and revokes keys."""

    def __init__(self, keyring: Keyring, invalidations: Invalidations) -> None:
        self._keyring = keyring
        self._invalidations = invalidations

    def create(
        self, session: Session, maker: Principal, request: KeyRequest, actor: Actor
    ) -> tuple[ApiKey, str]:
        """Create a key for its maker. Returns the row and the secret, which cannot be retrieved
        again.

        Raises `Forbidden` when the key would exceed its maker's scopes, limits or expiry,
        `BadRequest` for a limited key with `keys:write`, `Unauthorized` when the maker's key has
        ended.
        """
        if request.limited and Scope.KEYS_WRITE in request.scopes:
            raise BadRequest(
                "A key with max_uses, max_bytes or egress_budget can't have the scope keys:write."
            )
        if maker.limited:
            raise Forbidden("A key with max_uses, max_bytes or egress_budget can't create keys.")
        maker.require(*sorted(request.scopes))
        # A login's token is short-lived so that a browser need not keep a password; keys that it
        # makes may outlive it.
        if (
            not maker.from_login
            and maker.expires_at is not None
            and (request.expires_at is None or request.expires_at > maker.expires_at)
        ):
            raise Forbidden(
                "A key can't expire later than the key that creates it: set expires_at."
            )
        # The maker's key may have ended without this process knowing: asked of the database.
        _hold(session, maker)
        require_in_force(session, maker.key_id)
        return self.issue(session, maker.user_id, request, actor)

    def issue(
        self,
        session: Session,
        user_id: uuid.UUID,
        request: KeyRequest,
        actor: Actor,
        *,
        kind: str = KEY,
    ) -> tuple[ApiKey, str]:
        """Create a key or token for a user, without checking permissions. Returns the row and the
        secret. Raises `BadRequest` when `expires_at` lies in the past."""
        if request.expires_at is not None and request.expires_at <= utc_now():
            raise BadRequest("expires_at must be in the future.")
        secret, version = tokens.new_key(), version_in_use(session, self._keyring)
        key = ApiKey(
            id=new_id(),
            user_id=user_id,
            kind=kind,
            name=request.name,
            prefix=secret[: tokens.SHOWN_LENGTH],
            digest=tokens.digest(secret, self._keyring.subkey(Purpose.API_KEYS, version)),
            secret_version=version,
            scopes=sorted(request.scopes),
            expires_at=request.expires_at,
            max_uses=request.max_uses,
            max_bytes=request.max_bytes,
            egress_budget=request.egress_budget,
        )
        session.add(key)
        if kind == KEY:
            audit.record(session, actor, "key.create", "key", key.id, scopes=key.scopes)
        session.flush()
        return key, secret

    def revoke(self, session: Session, user_id: uuid.UUID, key_id: uuid.UUID, actor: Actor) -> None:
        """Revoke a key at once, in every process. Raises `NotFound` unless the key is the
        user's."""
        key = session.scalar(_live_keys(user_id).where(ApiKey.id == key_id).with_for_update())
        if key is None:
            raise NotFound
        key.revoked_at = utc_now()
        audit.record(session, actor, "key.revoke", "key", key.id)
        self._invalidations.announce(session)

    def revoke_tokens(self, session: Session, user_id: uuid.UUID) -> None:
        """Delete all login tokens of a user."""
        session.query(ApiKey).filter(ApiKey.user_id == user_id, ApiKey.kind != KEY).delete()
        self._invalidations.announce(session)


def get_key(session: Session, user_id: uuid.UUID, key_id: uuid.UUID) -> ApiKey:
    """Return one key of a user. Raises `NotFound` if the user has no such key."""
    key = session.scalar(_live_keys(user_id).where(ApiKey.id == key_id))
    if key is None:
        raise NotFound
    return key


def keys_of(user_id: uuid.UUID) -> Listing[ApiKey]:
    """List a user's keys that are neither revoked nor expired, without login tokens."""
    return Listing(_live_keys(user_id).where(is_in_force()), ApiKey.created_at, ApiKey.id)


def every_scope(user: User) -> frozenset[Scope]:
    """Return all scopes that a user may have."""
    return frozenset(Scope) if user.is_admin else frozenset(Scope) - {Scope.ADMIN}


def parse_scopes(words: Iterable[str]) -> frozenset[Scope]:
    """Parse scopes. Raises `BadRequest` for an unknown one."""
    try:
        return frozenset(Scope(word) for word in words)
    except ValueError:
        raise BadRequest(f"Unknown scope; the known scopes are: {', '.join(Scope)}.") from None


def is_in_force(now: BindParameter[datetime] | None = None) -> ColumnElement[bool]:
    """Return the SQL condition that a key is neither revoked nor expired, now or at `now`."""
    moment = utc_now() if now is None else now
    return and_(
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > moment),
    )


def keys_in_force(session: Session, key_ids: Collection[uuid.UUID]) -> Collection[uuid.UUID]:
    """Return those of the given keys that may be used now and whose users are active. Asked again
    before the result of long work is recorded."""
    asked = {"keys": list(key_ids), "now": utc_now()}
    return set(session.connection().execute(_in_force(), asked).scalars())


@cache
def _in_force() -> Select[uuid.UUID]:
    """Build the statement that selects those of `keys` that may be used at `now`. Built once: that
    takes as long as running it."""
    return (
        select(ApiKey.id)
        .join(User, User.id == ApiKey.user_id)
        .where(
            ApiKey.id.in_(bindparam("keys", expanding=True)),
            is_in_force(bindparam("now")),
            User.active,
            User.deleted_at.is_(None),
        )
    )


def require_in_force(session: Session, key_id: uuid.UUID) -> None:
    """Raise `Unauthorized` unless a key may be used now."""
    if key_id not in keys_in_force(session, [key_id]):
        raise Unauthorized


def require_administrator(session: Session, principal: Principal) -> None:
    """Raise `Unauthorized` unless a key may be used now, or `Forbidden` when its user is no longer
    an administrator."""
    require_in_force(session, principal.key_id)
    is_admin = session.scalar(select(User.is_admin).where(User.id == principal.user_id))
    replace(principal, is_admin=bool(is_admin)).require(Scope.ADMIN)


def _hold(session: Session, principal: Principal) -> None:
    """Lock user and key against being ended before this transaction ends. The user comes first, in
    the order in which accounts are ended."""
    user, key = select(User.id).where(User.id == principal.user_id), select(ApiKey.id)
    session.execute(user.with_for_update(read=True))
    session.execute(key.where(ApiKey.id == principal.key_id).with_for_update(read=True))


def _live_keys(user_id: uuid.UUID) -> Select[ApiKey]:
    return owned(select(ApiKey), ApiKey.user_id, user_id).where(
        ApiKey.kind == KEY, ApiKey.revoked_at.is_(None)
    )
