"""Authentication by API key: principals are cached in memory and dropped at every cache
invalidation."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import or_, select, update
from sqlalchemy.orm import joinedload

from on_api.core.crypto import tokens
from on_api.core.crypto.secrets import Keyring, Purpose
from on_api.core.errors import SecretUnavailable, Unauthorized
from on_api.core.models import ApiKey, Database, User
from on_api.core.models.database import utc_now
from on_api.core.models.invalidation import Invalidations
from on_api.core.models.key import TOKEN
from on_api.core.services.accounts.access import Principal, Scope
from on_api.core.services.accounts.master_secret import version_in_use

CACHED_KEYS = 10_000
REMEMBERED_SECONDS = 60.0
"""Seconds after which a cached key is looked up again even without a cache invalidation."""
LAST_USED_PRECISION = timedelta(seconds=60)
"""Least time between two writes of a key's `last_used_at`, so that most reads cause no write."""


@dataclass(frozen=True, slots=True)
class CountedKey:
    """A valid key whose uses are counted, and of which none was counted yet."""

    key_id: uuid.UUID


class _UsesAreCounted(Exception):
    """Signal that a key is valid but has counted uses, so only `authenticate` may use it."""

    def __init__(self, key: CountedKey) -> None:
        self.key = key


class Authenticator:
    """Authenticator that turns the secret of a key into its principal. Thread-safe."""

    def __init__(self, database: Database, keyring: Keyring, invalidations: Invalidations) -> None:
        self._database = database
        self._keyring = keyring
        self._invalidations = invalidations
        self._lock = threading.Lock()
        self._salt = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()
        self._lately_valid: OrderedDict[bytes, None] = OrderedDict()
        """In-memory names (`_name`) of keys that were valid at their last look-up."""
        self._used_at: dict[uuid.UUID, datetime] = {}
        self._generation = 0
        invalidations.subscribe(self._forget)

    @property
    def generation(self) -> int:
        """Number that rises with each cache invalidation, and at each read while invalidations
        cannot be received. Results found under an earlier generation may be wrong."""
        if not self._invalidations.trusted:
            self._forget()
        return self._generation

    def was_valid(self, key: str) -> bool:
        """Return whether a key was valid at its last look-up, as far as this process remembers."""
        return self._name(key) in self._lately_valid

    def authenticate(self, key: str) -> Principal:
        """Return the principal of a valid key and count the use of a limited one.

        Raises `Unauthorized` without giving a reason. A malformed or mistyped key causes no
        database query.
        """
        if not tokens.is_well_formed(key):
            raise Unauthorized
        now = utc_now()
        principal = self._recall(key)
        if principal is None:
            principal = self._find(key, now)
        if principal.expires_at is not None and principal.expires_at <= now:
            raise Unauthorized
        self._touch(principal.key_id, now)
        return principal

    def recall(self, key: str) -> Principal | None:
        """Return the principal of a valid key from memory alone, in microseconds; None where the
        database must be read or written."""
        # The key's form is not checked: only well-formed keys are known.
        principal = self._recall(key)
        now = utc_now()
        if principal is None or (principal.expires_at is not None and principal.expires_at <= now):
            return None
        with self._lock:
            last = self._used_at.get(principal.key_id)
        return principal if last is not None and now - last < LAST_USED_PRECISION else None

    def learn(self, key: str) -> Principal | CountedKey:
        """Return the principal of a valid key like `authenticate`, but count no use: only the id of
        a key whose uses are counted."""
        if not tokens.is_well_formed(key):
            raise Unauthorized
        now = utc_now()
        try:
            principal = self._recall(key) or self._find(key, now, may_count=False)
        except _UsesAreCounted as signal:
            return signal.key
        if principal.expires_at is not None and principal.expires_at <= now:
            raise Unauthorized
        self._touch(principal.key_id, now)
        return principal

    def _recall(self, key: str) -> Principal | None:
        if not self._invalidations.trusted:
            return None
        with self._lock:
            principal, until = self._known.get(self._name(key), (None, 0.0))
        return principal if time.monotonic() < until else None

    def _name(self, key: str) -> bytes:
        """Return the name under which this process remembers a key without holding it in memory. A
        faster hash than the database's digest, which takes ten times as long."""
        return hashlib.blake2b(key.encode(), key=self._salt, digest_size=32).digest()

    def _digest(self, key: str, version: int | None = None) -> bytes:
        return tokens.digest(key, self._keyring.subkey(Purpose.API_KEYS, version))

    def _find(self, key: str, now: datetime, *, may_count: bool = True) -> Principal:
        """Look the key up under all master secrets that are here, in one query: two queries could
        miss a key whose digest is renewed in between."""
        try:
            principal = self._look_up(key, now, may_count=may_count)
            if principal is None and self._keyring.refresh():  # rotated by another process
                principal = self._look_up(key, now, may_count=may_count)
            if principal is None:
                raise Unauthorized
        except Unauthorized:
            self._remember(self._name(key), is_valid=False)
            raise
        except _UsesAreCounted:
            self._remember(self._name(key), is_valid=True)
            raise
        self._remember(self._name(key), is_valid=True)
        return principal

    def _remember(self, name: bytes, *, is_valid: bool) -> None:
        with self._lock:
            self._lately_valid.pop(name, None)
            if is_valid:
                self._lately_valid[name] = None
            if len(self._lately_valid) > CACHED_KEYS:
                self._lately_valid.popitem(last=False)

    def _digest_anew(self, key_id: uuid.UUID, key: str) -> None:
        """Digest a key under the secret in use, so that it no longer needs an earlier one."""
        with self._database.session_scope() as session:
            try:
                version = version_in_use(session, self._keyring)
            except SecretUnavailable:
                return
            session.execute(
                update(ApiKey)
                .where(ApiKey.id == key_id)
                .values(digest=self._digest(key, version), secret_version=version)
            )

    def _look_up(self, key: str, now: datetime, *, may_count: bool) -> Principal | None:
        generation, until = self._generation, time.monotonic() + REMEMBERED_SECONDS
        digests = [self._digest(key, version) for version in self._keyring.versions]
        with self._database.session_scope(write=False) as session:
            row = session.scalar(
                select(ApiKey).where(ApiKey.digest.in_(digests)).options(joinedload(ApiKey.user))
            )
            if row is None:
                return None
            if row.revoked_at is not None or not may_act(row.user):
                raise Unauthorized
            if row.expires_at is not None and row.expires_at <= now:
                raise Unauthorized
            principal = _principal(row)
            counted = row.max_uses is not None
            if row.max_uses is not None and row.uses >= row.max_uses:
                raise Unauthorized
            is_old = row.digest != digests[0]
        if is_old:
            self._digest_anew(principal.key_id, key)
        if counted:
            if not may_count:
                raise _UsesAreCounted(CountedKey(principal.key_id))
            # Not kept in memory: each use asks the database, the only place where the count is
            # exact.
            self._count_use(principal.key_id)
            return principal
        with self._lock:
            # A change during the look-up would otherwise leave an outdated principal in the cache.
            if generation == self._generation:
                self._known[self._name(key)] = principal, until
                while len(self._known) > CACHED_KEYS:
                    self._known.popitem(last=False)
        return principal

    def _count_use(self, key_id: uuid.UUID) -> None:
        with self._database.session_scope() as session:
            counted = session.scalar(
                update(ApiKey)
                .where(ApiKey.id == key_id, ApiKey.uses < ApiKey.max_uses)
                .values(uses=ApiKey.uses + 1)
                .returning(ApiKey.id)
            )
            if counted is None:
                raise Unauthorized

    def _touch(self, key_id: uuid.UUID, now: datetime) -> None:
        with self._lock:
            last = self._used_at.get(key_id)
            if last is not None and now - last < LAST_USED_PRECISION:
                return
            if len(self._used_at) > CACHED_KEYS:
                self._used_at.clear()
            self._used_at[key_id] = now
        with self._database.session_scope() as session:
            session.execute(
                update(ApiKey)
                .where(
                    ApiKey.id == key_id,
                    or_(
                        ApiKey.last_used_at.is_(None),
                        ApiKey.last_used_at < now - LAST_USED_PRECISION,
                    ),
                )
                .values(last_used_at=now)
            )

    def _forget(self) -> None:
        with self._lock:
            self._generation += 1
            self._known.clear()


def may_act(user: User) -> bool:
    """Return whether an account is neither deactivated nor deleted."""
    return user.active and user.deleted_at is None


def _principal(key: ApiKey) -> Principal:
    return Principal(
        user_id=key.user_id,
        username=key.user.username,
        is_admin=key.user.is_admin,
        key_id=key.id,
        scopes=frozenset(Scope(word) for word in key.scopes if word in set(Scope)),
        expires_at=key.expires_at,
        limited=any(
            limit is not None for limit in (key.max_uses, key.max_bytes, key.egress_budget)
        ),
        max_bytes=key.max_bytes,
        from_login=key.kind == TOKEN,
    )
