"""Who is behind a key or a password. Keys are checked in memory where possible and forgotten when
anything changes."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections import OrderedDict
from contextlib import AbstractContextManager
from datetime import datetime, timedelta

from sqlalchemy import or_, select, update
from sqlalchemy.orm import joinedload

from on_api.core.crypto import tokens
from on_api.core.crypto.passwords import PasswordHasher
from on_api.core.crypto.secrets import Keyring, Purpose
from on_api.core.errors import BadRequest, SecretUnavailable, Unauthorized
from on_api.core.models import ApiKey, Database, User
from on_api.core.models.database import moment_of, utc_now
from on_api.core.models.invalidation import Invalidations
from on_api.core.models.key import TOKEN
from on_api.core.models.user import USERNAME_PATTERN
from on_api.core.services.accounts import audit
from on_api.core.services.accounts.access import Principal, Scope
from on_api.core.services.accounts.audit import Actor
from on_api.core.services.accounts.keys import KeyRequest, KeyService, every_scope
from on_api.core.services.accounts.master_secret import version_in_use
from on_api.core.services.accounts.scrypt_pool import Asker, ScryptPool
from on_api.core.services.accounts.throttling import Throttle, touch
from on_api.core.setting_groups import AuthSettings

CACHED_KEYS = 10_000
REMEMBERED_SECONDS = 60.0
"""A key is looked at anew so often even if no news came."""
LAST_USED_PRECISION = timedelta(seconds=60)
"""`last_used_at` is written at most this often per key, so that reading costs no write."""

# What can be a username at all: nothing else needs to reach the database.
_USERNAME = re.compile(USERNAME_PATTERN)


class _UsesAreCounted(Exception):
    """A valid key that only `authenticate` may use."""


class Authenticator:
    """Turns the secret of a key into its principal. Thread-safe."""

    def __init__(self, database: Database, keyring: Keyring, invalidations: Invalidations) -> None:
        self._database = database
        self._keyring = keyring
        self._invalidations = invalidations
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()
        self._lately_valid: OrderedDict[bytes, None] = OrderedDict()
        """Digests of keys that were valid when they were last looked up."""
        self._used_at: dict[uuid.UUID, datetime] = {}
        self._generation = 0
        invalidations.subscribe(self._forget)

    @property
    def generation(self) -> int:
        """Rises with all news, and while none can be heard: what was found out before it may be
        wrong."""
        if not self._invalidations.trusted:
            self._forget()
        return self._generation

    def was_valid(self, key: str) -> bool:
        """Whether a key was valid when it was last looked up, as far as this process remembers."""
        return self._digest(key) in self._lately_valid

    def authenticate(self, key: str) -> Principal:
        """The principal of a valid key; counts the use of a limited one.

        Raises `Unauthorized`, never saying why. A malformed or mistyped key costs no question to
        the database.
        """
        if not tokens.is_well_formed(key):
            raise Unauthorized
        now = utc_now()
        principal = self._recall(self._digest(key))
        if principal is None:
            principal = self._find(key, now)
        if principal.expires_at is not None and principal.expires_at <= now:
            raise Unauthorized
        self._touch(principal.key_id, now)
        return principal

    def recall(self, key: str) -> Principal | None:
        """The principal of a valid key where memory alone can tell, in microseconds; None where the
        database must be asked, or written."""
        # No look at its form: what is known was well-formed.
        principal = self._recall(self._digest(key))
        now = utc_now()
        if principal is None or (principal.expires_at is not None and principal.expires_at <= now):
            return None
        with self._lock:
            last = self._used_at.get(principal.key_id)
        return principal if last is not None and now - last < LAST_USED_PRECISION else None

    def learn(self, key: str) -> Principal | None:
        """As `authenticate`, but counts nothing: None for a key whose uses are counted."""
        if not tokens.is_well_formed(key):
            raise Unauthorized
        now = utc_now()
        try:
            principal = self._recall(self._digest(key)) or self._find(key, now, may_count=False)
        except _UsesAreCounted:
            return None
        if principal.expires_at is not None and principal.expires_at <= now:
            raise Unauthorized
        self._touch(principal.key_id, now)
        return principal

    def _recall(self, digest: bytes) -> Principal | None:
        if not self._invalidations.trusted:
            return None
        with self._lock:
            principal, until = self._known.get(digest, (None, 0.0))
        return principal if time.monotonic() < until else None

    def _digest(self, key: str, version: int | None = None) -> bytes:
        return tokens.digest(key, self._keyring.subkey(Purpose.API_KEYS, version))

    def _find(self, key: str, now: datetime, *, may_count: bool = True) -> Principal:
        """Look under every master secret that is here, at once: a key that is digested anew
        meanwhile would be missed by two looks."""
        try:
            principal = self._look_up(key, now, may_count=may_count)
            if principal is None and self._keyring.refresh():  # rotated by another process
                principal = self._look_up(key, now, may_count=may_count)
            if principal is None:
                raise Unauthorized
        except Unauthorized:
            self._remember(self._digest(key), is_valid=False)
            raise
        except _UsesAreCounted:
            self._remember(self._digest(key), is_valid=True)
            raise
        self._remember(self._digest(key), is_valid=True)
        return principal

    def _remember(self, digest: bytes, *, is_valid: bool) -> None:
        with self._lock:
            self._lately_valid.pop(digest, None)
            if is_valid:
                self._lately_valid[digest] = None
            if len(self._lately_valid) > CACHED_KEYS:
                self._lately_valid.popitem(last=False)

    def _digest_anew(self, key_id: uuid.UUID, key: str) -> None:
        """A key that was digested under an earlier master secret needs that one no more."""
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
            if row.revoked_at is not None or not _may_act(row.user):
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
                raise _UsesAreCounted
            # Not kept in memory: each use asks the database, the only place where the count is
            # exact.
            self._count_use(principal.key_id)
            return principal
        with self._lock:
            # What changed while we looked would otherwise be remembered as it was before.
            if generation == self._generation:
                self._known[digests[0]] = principal, until
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


class _PasswordReplaced(Exception):
    """The hash that a password was checked against is no longer the user's."""


class LoginService:
    """Password logins: a short-lived token for the right password, a growing pause after wrong
    ones. All scrypt waits and runs in `ScryptPool`."""

    def __init__(
        self,
        database: Database,
        hasher: PasswordHasher,
        pool: ScryptPool,
        throttle: Throttle,
        keys: KeyService,
        settings: AuthSettings,
    ) -> None:
        self._database = database
        self._hasher = hasher
        self._pool = pool
        self._throttle = throttle
        self._keys = keys
        self._settings = settings

    async def log_in(
        self, username: str, password: str, scopes: frozenset[Scope], actor: Actor
    ) -> tuple[str, int]:
        """A token and its life in seconds. `scopes` narrows it; empty means all that the user may
        do.

        Takes the same time whether the user exists or not. Raises `Unauthorized`, `BadRequest` for
        scopes that the user can't have, `TooManyRequests` after too many wrong passwords for this
        name from this network (see `Throttle`), and what `ScryptPool.run` raises.
        """
        username = username.lower()
        asker = self._throttle.asker(_asked(username), actor.client)
        return await self._pool.run(
            asker,
            lambda: self._log_in(username, password, scopes, actor, asker.network),
            memory=self._hasher.memory,
        )

    async def hash_password(self, password: str, asker: Asker) -> str:
        """The hash of a new password, to be stored. Raises what `ScryptPool.run` raises."""
        return await self._pool.run(
            asker, lambda: self._hasher.hash(password), memory=self._hasher.memory
        )

    async def check_password(self, asker: Asker, user_id: uuid.UUID, password: str) -> str:
        """Raise `Unauthorized` unless it is the user's password; counted like a login.

        Returns the hash that it was checked against, by which whoever then acts makes sure that it
        is the password still (`users.require_password`).
        """
        return await self._pool.run(
            asker,
            lambda: self._check_password(asker.network, user_id, password),
            memory=self._hasher.memory,
        )

    def _log_in(
        self,
        username: str,
        password: str,
        scopes: frozenset[Scope],
        actor: Actor,
        network: str,
    ) -> tuple[str, int]:
        if _USERNAME.fullmatch(username) is None:
            self._hasher.verify(password, None)
            raise Unauthorized("Wrong username or password.")
        while True:
            user_id, stored, renewed = self._check_login(username, password, actor, network)
            try:
                return self._issue(user_id, scopes, stored, renewed, actor)
            except _PasswordReplaced:
                continue  # changed, or hashed anew by another login: only a new look can tell

    def _check_login(
        self, username: str, password: str, actor: Actor, network: str
    ) -> tuple[uuid.UUID, str, str | None]:
        """The user of a right password, the hash that tells so, and one of today's cost where that
        one is outdated."""
        with self._database.session_scope(write=False) as session:
            user = session.scalar(select(User).where(User.username == username))
            stored = user.password_hash if user is not None and _may_act(user) else None
        subject = _asked(username) if user is None else _subject(user.id)
        try:
            with self._one_try(subject, network, username):
                verdict = self._hasher.verify(password, stored)  # outside: it takes its time
                if user is None or stored is None or not verdict.correct:
                    raise Unauthorized("Wrong username or password.")
        except Unauthorized:
            self._note_failure(subject, network, user, actor)
            raise
        return user.id, stored, self._hasher.hash(password) if verdict.outdated else None

    def _note_failure(self, subject: str, network: str, user: User | None, actor: Actor) -> None:
        """One line of the log if there is such a user: nobody shall fill it with names. Where there
        is none, something of the same cost, or the time would tell."""
        with self._database.session_scope() as session:
            if user is not None:
                audit.record(session, actor, "login.failed", "user", user.id)
            else:
                touch(session, subject, network)

    def _check_password(self, network: str, user_id: uuid.UUID, password: str) -> str:
        with self._database.session_scope(write=False) as session:
            user = session.get_one(User, user_id)
            username, stored = user.username, user.password_hash
        with self._one_try(_subject(user_id), network, username):
            if stored is None or not self._hasher.verify(password, stored).correct:
                raise Unauthorized("Wrong password.")
        return stored

    def _one_try(self, subject: str, network: str, username: str) -> AbstractContextManager[None]:
        return self._throttle.one_try(
            subject, network, wrong=Unauthorized, known_as=_asked(username)
        )

    def _issue(
        self,
        user_id: uuid.UUID,
        scopes: frozenset[Scope],
        verified: str,
        renewed: str | None,
        actor: Actor,
    ) -> tuple[str, int]:
        lifetime = self._settings.token_lifetime
        with self._database.session_scope() as session:
            user = session.scalar(select(User).where(User.id == user_id).with_for_update())
            if user is None or not _may_act(user):
                raise Unauthorized
            if user.password_hash != verified:
                raise _PasswordReplaced
            if renewed is not None:
                user.password_hash = renewed
            allowed = every_scope(user)
            if scopes and not scopes & allowed:
                # An empty rest would mean everything.
                raise BadRequest("scope: you may have none of these.")
            request = KeyRequest(
                name="login",
                scopes=scopes & allowed if scopes else allowed,
                expires_at=moment_of(session) + timedelta(seconds=lifetime),
            )
            key, secret = self._keys.issue(session, user_id, request, actor, kind=TOKEN)
            audit.record(session, actor, "login", "user", user_id, key_id=str(key.id))
        return secret, lifetime


def _may_act(user: User) -> bool:
    return user.active and user.deleted_at is None


def _subject(user_id: uuid.UUID) -> str:
    """By which tries of a user's password are counted, whatever name they have meanwhile."""
    return f"user:{user_id}"


def _asked(username: str) -> str:
    """Subject by which tries with a name that nobody has are counted. Who has logged in by a name
    is known by it, since places in the queue are given before the database is asked whose it
    is."""
    return f"login:{username}"


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
