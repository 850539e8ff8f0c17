"""Shares: links to one file that work without an account. They are answered in `public/shares.py`.

Each request asks the database what a share still allows, and counts there before a byte is sent:
all processes together never grant more.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Select,
    case,
    false,
    func,
    not_,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.orm import Session

from on_api.core.crypto import tokens
from on_api.core.crypto.passwords import PasswordHasher
from on_api.core.errors import BadRequest, NotFound, SharePasswordRequired
from on_api.core.models import Database, File, Share, User
from on_api.core.models.database import database_now, new_id, utc_now
from on_api.core.models.file import FOR_RECIPIENTS
from on_api.core.services.accounts import audit
from on_api.core.services.accounts.access import owned
from on_api.core.services.accounts.audit import Actor
from on_api.core.services.accounts.scrypt_pool import ScryptPool
from on_api.core.services.accounts.throttling import Throttle
from on_api.core.services.files.files import get_file
from on_api.core.services.shared import events
from on_api.core.services.shared.paging import Listing

SHOWN_LENGTH = 6
"""Characters of a token that may be shown, so that its owner recognises it."""
PASSWORD_LENGTH = 256
KNOWN_PASSWORDS = 10_000

_MAX_INT64 = 2**63 - 1
_MOST_BYTES_LEFT = 2**61
_NOT_VALID = (
    "This link is not valid, or it is no longer available. Ask the person who sent it to you for a"
    " new one."
)


@dataclass(frozen=True, slots=True)
class ShareRequest:
    """Properties of a new share."""

    file_id: uuid.UUID
    expires_at: datetime | None
    max_downloads: int | None
    password_hash: str | None


@dataclass(frozen=True, slots=True)
class Shared:
    """Valid share and its file, as they were a moment ago; detached from the session."""

    share: Share
    file: File

    @property
    def size(self) -> int:
        """Bytes of the file as the share serves it."""
        if self.file.sealed_for == FOR_RECIPIENTS and self.file.sealed_size is not None:
            return self.file.sealed_size  # the server can't open it: the age file is shared
        return self.file.size

    @property
    def spare(self) -> int:
        """Bytes that one download may have beyond the file's size, for parts sent twice: a quarter
        of it."""
        return max(min(self.size // 4 + 16, self.size - 1), 0)

    def leaves(self, length: int) -> bool:
        """Return whether `length` bytes may still be sent."""
        share, left = self.share, self.share.left_bytes or 0
        if share.max_downloads is None or share.downloads < share.max_downloads:
            return True
        again = length == self.size and share.whole_begun is not False
        return left > 0 and left - length >= -self.spare and not again

    @property
    def used_up(self) -> bool:
        """True if neither a download nor the rest of one is left."""
        limit, left = self.share.max_downloads, self.share.left_bytes or 0
        return limit is not None and self.share.downloads >= limit and left <= 0


class ShareService:
    """Service that makes, revokes and serves shares. Thread-safe."""

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
        """Make a share of a user's file. Returns the row and the token, which cannot be retrieved
        again.

        Raises `NotFound` for a file that isn't the user's, `BadRequest` for an expiry in the past.
        """
        file = get_file(session, user_id, request.file_id)
        if request.expires_at is not None and request.expires_at <= utc_now():
            raise BadRequest("expires_at must be in the future.")
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
        """Revoke a share at once, in every process. Raises `NotFound`."""
        share = session.scalar(_mine(user_id).where(Share.id == share_id).with_for_update())
        if share is None:
            raise NotFound
        share.revoked_at = utc_now()
        named = {"file_id": str(share.file_id)}
        audit.record(session, actor, "share.revoke", "share", share.id, **named)
        events.record(session, user_id, "share.revoked", share.id, **named)

    def find(self, token: str) -> Shared:
        """Return the share of a token. Raises `NotFound`, with the same message for an unknown
        token and for one that is revoked, expired or used up."""
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

        A right password is remembered: a program that requests many parts of a file sends its
        password with each of them. Parts requested at once share one check.
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
        with self._throttle.one_try(_subject(share), network, wrong=SharePasswordRequired):
            if not self._hasher.verify(password, share.password_hash).correct:
                raise SharePasswordRequired("Wrong password.")
            self._right.remember(share, password)

    def require(self, shared: Shared, length: int) -> None:
        """Raise `NotFound` where `take` would, as far as memory can tell."""
        if not shared.leaves(length):
            raise NotFound(_NOT_VALID)

    def take(self, shared: Shared, length: int) -> None:
        """Count `length` bytes, before the first of them is sent. Raises `NotFound` when the share
        does not allow them any more.

        They belong to the download under way, unless that has nothing left, or the whole file is
        requested again: then the next one begins. The limit, over all processes: `max_downloads`
        downloads, each of the file's size and `Shared.spare`.
        """
        limit, size, spare = shared.share.max_downloads, shared.size, shared.spare
        is_whole = length == size
        left = func.coalesce(Share.left_bytes, 0)
        begins = or_(left <= 0, left - length < -spare)
        if is_whole:
            begins = or_(begins, func.coalesce(Share.whole_begun, true()))
        # A link without a limit refuses nothing, but no sum may grow without bound.
        most = size if limit is None else _MOST_BYTES_LEFT
        kept = case((left <= 0, 0), (left > most, most), else_=left)
        statement = (
            update(Share)
            .where(Share.id == shared.share.id, _is_valid())
            .values(
                downloads=Share.downloads + case((begins, 1), else_=0),
                left_bytes=case((begins, kept + (size - length)), else_=left - length),
                whole_begun=true()
                if is_whole
                else case((begins, false()), else_=Share.whole_begun),
                sent_bytes=Share.sent_bytes + length,
            )
        )
        if limit is not None:
            room = min(limit * (size + spare) - length, _MAX_INT64)
            statement = statement.where(
                or_(Share.downloads < limit, not_(begins)), Share.sent_bytes <= room
            )
        with self._database.session_scope() as session:
            if session.scalar(statement.returning(Share.id)) is None:
                raise NotFound(_NOT_VALID)

    def give_back(self, shared: Shared, unsent: int) -> None:
        """Return bytes that were taken but not sent. A download is never returned."""
        with self._database.session_scope() as session:
            session.execute(
                update(Share)
                .where(Share.id == shared.share.id)
                .values(sent_bytes=Share.sent_bytes - unsent, left_bytes=Share.left_bytes + unsent)
            )


class _RightPasswords:
    """Cache of the latest right passwords, as HMACs under a key of this process. Bound to the
    stored hash: a new password is not remembered as right. Thread-safe."""

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
    """Return one share of a user. Raises `NotFound` for any other, and for a revoked one."""
    share = session.scalar(_mine(user_id).where(Share.id == share_id))
    if share is None:
        raise NotFound
    return share


def shares_of(user_id: uuid.UUID, file_id: uuid.UUID | None) -> Listing[Share]:
    """List a user's shares that are not revoked, including expired and used-up ones; all, or those
    of one file."""
    statement = _mine(user_id)
    if file_id is not None:
        statement = statement.where(Share.file_id == file_id)
    return Listing(statement, Share.created_at, Share.id)


def _subject(share: Share) -> str:
    """Return the subject under which tries of a link's password are counted."""
    return f"share:{share.id}"


def _mine(user_id: uuid.UUID) -> Select[Share]:
    return owned(select(Share), Share.user_id, user_id).where(Share.revoked_at.is_(None))


def _is_valid() -> ColumnElement[bool]:
    lasts = or_(Share.expires_at.is_(None), Share.expires_at > database_now())
    return Share.revoked_at.is_(None) & lasts
