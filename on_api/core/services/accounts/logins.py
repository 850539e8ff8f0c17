"""Logins: a correct password yields a short-lived token."""

from __future__ import annotations

import re
import uuid
from contextlib import AbstractContextManager
from datetime import timedelta

from sqlalchemy import select

from on_api.core.crypto.passwords import PasswordHasher
from on_api.core.errors import BadRequest, Unauthorized
from on_api.core.models import Database, User
from on_api.core.models.database import moment_of
from on_api.core.models.key import TOKEN
from on_api.core.models.user import USERNAME_PATTERN
from on_api.core.server_settings import AuthSettings
from on_api.core.services.accounts import audit
from on_api.core.services.accounts.access import Scope
from on_api.core.services.accounts.audit import Actor
from on_api.core.services.accounts.authentication import may_act
from on_api.core.services.accounts.keys import KeyRequest, KeyService, every_scope
from on_api.core.services.accounts.scrypt_pool import Asker, ScryptPool
from on_api.core.services.accounts.throttling import Throttle, touch

# Other names need not reach the database.
_USERNAME = re.compile(USERNAME_PATTERN)


class _PasswordReplaced(Exception):
    """Signal that the hash that a password was checked against is no longer the user's."""


class LoginService:
    """Password logins: a short-lived token for the right password, a growing pause after wrong
    ones. All scrypt work queues and runs in `ScryptPool`."""

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
        """Check a password. Returns a token and its lifetime in seconds. `scopes` narrows the
        token; empty means all that the user may have.

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
        """Return the hash of a new password, to be stored. Raises what `ScryptPool.run` raises."""
        return await self._pool.run(
            asker, lambda: self._hasher.hash(password), memory=self._hasher.memory
        )

    async def check_password(self, asker: Asker, user_id: uuid.UUID, password: str) -> str:
        """Raise `Unauthorized` unless it is the user's password; wrong ones count like failed
        logins.

        Returns the hash that it was checked against. Before acting on it, pass the hash to
        `users.require_password`, which makes sure that the password is unchanged.
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
                continue  # changed, or hashed again by another login: check anew

    def _check_login(
        self, username: str, password: str, actor: Actor, network: str
    ) -> tuple[uuid.UUID, str, str | None]:
        """Return the user's id, the hash that the password matches, and a new hash where that one
        is outdated in cost. Raises `Unauthorized` for a wrong password."""
        with self._database.session_scope(write=False) as session:
            user = session.scalar(select(User).where(User.username == username))
            stored = user.password_hash if user is not None and may_act(user) else None
        subject = _asked(username) if user is None else _subject(user.id)
        try:
            with self._one_try(subject, network, username):
                check = self._hasher.verify(password, stored)  # outside: it takes its time
                if user is None or stored is None or not check.correct:
                    raise Unauthorized("Wrong username or password.")
        except Unauthorized:
            self._note_failure(subject, network, user, actor)
            raise
        return user.id, stored, self._hasher.hash(password) if check.outdated else None

    def _note_failure(self, subject: str, network: str, user: User | None, actor: Actor) -> None:
        """Record a failed login in the log if the user exists, so that unknown names can't fill it.
        For an unknown name do a write of equal cost, so that timing does not tell the two apart."""
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
            if user is None or not may_act(user):
                raise Unauthorized
            if user.password_hash != verified:
                raise _PasswordReplaced
            if renewed is not None:
                user.password_hash = renewed
            allowed = every_scope(user)
            if scopes and not scopes & allowed:
                # An empty rest would mean everything.
                raise BadRequest("scope: your account has none of the requested scopes.")
            request = KeyRequest(
                name="login",
                scopes=scopes & allowed if scopes else allowed,
                expires_at=moment_of(session) + timedelta(seconds=lifetime),
            )
            key, secret = self._keys.issue(session, user_id, request, actor, kind=TOKEN)
            audit.record(session, actor, "login", "user", user_id, key_id=str(key.id))
        return secret, lifetime


def _subject(user_id: uuid.UUID) -> str:
    """Return the subject under which tries of a user's password are counted, even after a
    rename."""
    return f"user:{user_id}"


def _asked(username: str) -> str:
    """Return the subject under which tries with an unknown name are counted. Successful logins are
    remembered under it too, since places in the queue are given before the database is asked for
    the user."""
    return f"login:{username}"
