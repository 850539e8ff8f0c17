"""Shares: links by which one file can be had without an account. How they are answered is in
`public/shares.py`.

What a share still allows is asked of the database by every request, and counted there before a
byte is sent: all processes together never grant more.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, or_, select, update
from sqlalchemy.orm import Session

from on_api.core.crypto import tokens
from on_api.core.crypto.passwords import PasswordHasher
from on_api.core.errors import BadRequest, NotFound, SharePasswordRequired
from on_api.core.models import Database, File, Share, User
from on_api.core.models.database import new_id, utc_now
from on_api.core.models.file import FOR_RECIPIENTS
from on_api.core.services import audit, events
from on_api.core.services.access import owned
from on_api.core.services.audit import Actor
from on_api.core.services.files import get_file
from on_api.core.services.paging import Listing
from on_api.core.services.scrypt_pool import ScryptPool
from on_api.core.services.throttling import Throttle

SHOWN_LENGTH = 6
"""How much of a token may be shown, so that its owner recognises it."""
PASSWORD_LENGTH = 256
KNOWN_PASSWORDS = 10_000

_LARGEST = 2**63 - 1
_NOT_VALID = "This link is not valid, or not any more. Ask whoever sent it to you for a new one."


@dataclass(frozen=True, slots=True)
class ShareRequest:
    """What a new share shall be."""

    file_id: uuid.UUID
    expires_at: datetime | None
    max_downloads: int | None
    password_hash: str | None


@dataclass(frozen=True, slots=True)
class Shared:
    """A share that is valid, and its file, as they were a moment ago; detached."""

    share: Share
    file: File

    @property
    def size(self) -> int:
        """Bytes of the file as the share serves it."""
        if self.file.sealed_for == FOR_RECIPIENTS and self.file.sealed_size is not None:
            return self.file.sealed_size  # the server can't open it: the age file is shared
        return self.file.size

    def leaves(self, offset: int, length: int) -> bool:
        """Whether `length` bytes from `offset` on may still be had."""
        share = self.share
        if share.max_downloads is None:
            return True
        begins = offset > 0 or share.downloads < share.max_downloads
        return begins and share.sent_bytes + length <= share.max_downloads * self.size

    @property
    def used_up(self) -> bool:
        """Whether nothing of it can be had any more: neither a download nor the rest of one."""
        return not self.leaves(0, 0) if self.size == 0 else not self.leaves(1, 1)


class ShareService:
    """Makes, revokes and serves shares. Thread-safe."""

    def __init__(
        self, database: Database, hasher: PasswordHasher, pool: ScryptPool, throttle: Throttle
    ) -> None:
        self._database = database
        self._hasher = hasher
        self._pool = pool
        self._throttle = throttle
        self._right = _RightPasswords()

    def create(
        self, session: Session, user_id: uuid.UUID, request: ShareRequest, actor: Actor
    ) -> tuple[Share, str]:
        """Make a share of a user's file. Returns the row and the token, which can't be had again.

        Raises `NotFound` for a file that isn't the user's, `BadRequest` for an expiry in the past.
        """
        file = get_file(session, user_id, request.file_id)
        if request.expires_at is not None and request.expires_at <= utc_now():
            raise BadRequest("expires_at lies in the past.")
        token = tokens.new_share_token()
        share = Share(
            id=new_id(),
            user_id=user_id,
            file_id=file.id,
            token_hash=tokens.share_digest(token),
            prefix=token[:SHOWN_LENGTH],
            expires_at=request.expires_at,
            max_downloads=request.max_downloads,
            downloads=0,
            password_hash=request.password_hash,
        )
        session.add(share)
        named = {"file_id": str(file.id)}
        audit.record(session, actor, "share.create", "share", share.id, **named)
        events.record(session, user_id, "share.created", share.id, **named)
        session.flush()
        return share, token

    def revoke(
        self, session: Session, user_id: uuid.UUID, share_id: uuid.UUID, actor: Actor
    ) -> None:
        """End a share at once, in every process. Raises `NotFound`."""
        share = session.scalar(_mine(user_id).where(Share.id == share_id).with_for_update())
        if share is None:
            raise NotFound
        share.revoked_at = utc_now()
        named = {"file_id": str(share.file_id)}
        audit.record(session, actor, "share.revoke", "share", share.id, **named)
        events.record(session, user_id, "share.revoked", share.id, **named)

    def find(self, token: str) -> Shared:
        """The share of a token. Raises `NotFound`, in the same words for a token that never was,
        and for one that is revoked, expired or used up."""
        digest = tokens.share_digest(token)
        if digest is None:
            raise NotFound(_NOT_VALID)
        with self._database.session_scope(write=False) as session:
            row = session.execute(
                select(Share, File)
                .join(File, File.id == Share.file_id)
                .join(User, User.id == Share.user_id)
                .where(Share.token_hash == digest, _is_valid(), User.active)
                .where(User.deleted_at.is_(None))
            ).one_or_none()
        if row is None or (shared := Shared(*row)).used_up:
            raise NotFound(_NOT_VALID)
        return shared

    async def check_password(self, share: Share, password: str | None, address: str | None) -> None:
        """Raise `SharePasswordRequired` unless it is the share's password, where it has one,
        `TooManyRequests` after too many wrong ones from the network of `address` (see `Throttle`),
        and what `ScryptPool.run` raises.

        Who was right once needs no second look: a program that asks for many parts of a file sends
        its password with each of them. Parts that are asked for at once share one look.
        """
        if share.password_hash is None:
            return
        if not password:
            raise SharePasswordRequired
        if len(password) > PASSWORD_LENGTH:
            raise SharePasswordRequired("Wrong password.")
        if self._right.remembers(share, password):
            return
        asker = self._throttle.asker(_subject(share), address)
        await self._pool.run(
            asker,
            lambda: self._check_password(share, password, asker.network),
            memory=self._hasher.memory,
            same=self._right.digest(share, password),
        )

    def _check_password(self, share: Share, password: str, network: str) -> None:
        if self._right.remembers(share, password):
            return
        self._throttle.count(_subject(share), network)
        if not self._hasher.verify(password, share.password_hash).correct:
            raise SharePasswordRequired("Wrong password.")
        self._right.remember(share, password)
        self._throttle.forgive(_subject(share), network)

    def require(self, shared: Shared, offset: int, length: int) -> None:
        """Raise `NotFound` where `take` would, as far as can be seen without it."""
        if not shared.leaves(offset, length):
            raise NotFound(_NOT_VALID)

    def take(self, shared: Shared, offset: int, length: int) -> None:
        """Count `length` bytes from `offset` on, before the first of them is sent; from the file's
        beginning on that is one download. Raises `NotFound` when they may not be had any more.

        The limit, over all processes: `max_downloads` downloads, and as many times the file's size.
        """
        limit = shared.share.max_downloads
        begins = offset == 0
        if limit is None and not begins:
            return
        statement = update(Share).where(Share.id == shared.share.id, _is_valid())
        if begins:
            statement = statement.values(downloads=Share.downloads + 1)
        if limit is not None:
            room = min(limit * shared.size - length, _LARGEST)
            statement = statement.where(Share.sent_bytes <= room)
            statement = statement.values(sent_bytes=Share.sent_bytes + length)
            if begins:
                statement = statement.where(Share.downloads < limit)
        with self._database.session_scope() as session:
            if session.scalar(statement.returning(Share.id)) is None:
                raise NotFound(_NOT_VALID)

    def give_back(self, shared: Shared, unsent: int) -> None:
        """Return bytes that were taken but not sent. A download is never given back."""
        if shared.share.max_downloads is None:
            return
        with self._database.session_scope() as session:
            session.execute(
                update(Share)
                .where(Share.id == shared.share.id)
                .values(sent_bytes=Share.sent_bytes - unsent)
            )


class _RightPasswords:
    """The latest passwords that were right, as HMACs under a key that no other process has.
    Bound to the stored hash: with another one nothing is remembered. Thread-safe."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def remembers(self, share: Share, password: str) -> bool:
        with self._lock:
            return self.digest(share, password) in self._known

    def remember(self, share: Share, password: str) -> None:
        with self._lock:
            self._known[self.digest(share, password)] = None
            while len(self._known) > KNOWN_PASSWORDS:
                self._known.popitem(last=False)

    def digest(self, share: Share, password: str) -> bytes:
        message = f"{share.id} {share.password_hash} {password}"
        return hmac.digest(self._key, message.encode(), "sha256")


def get_share(session: Session, user_id: uuid.UUID, share_id: uuid.UUID) -> Share:
    """One share of a user. Raises `NotFound` for any other, and for a revoked one."""
    share = session.scalar(_mine(user_id).where(Share.id == share_id))
    if share is None:
        raise NotFound
    return share


def shares_of(user_id: uuid.UUID, file_id: uuid.UUID | None) -> Listing[Share]:
    """A user's shares that are not revoked, those that are over by themselves among them; all, or
    those of one file."""
    statement = _mine(user_id)
    if file_id is not None:
        statement = statement.where(Share.file_id == file_id)
    return Listing(statement, Share.created_at, Share.id)


def _subject(share: Share) -> str:
    """By which tries of a link's password are counted."""
    return f"share:{share.id}"


def _mine(user_id: uuid.UUID) -> Select[Share]:
    return owned(select(Share), Share.user_id, user_id).where(Share.revoked_at.is_(None))


def _is_valid() -> ColumnElement[bool]:
    lasts = or_(Share.expires_at.is_(None), Share.expires_at > utc_now())
    return Share.revoked_at.is_(None) & lasts
