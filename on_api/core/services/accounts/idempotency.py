"""`Idempotency-Key`: a request repeated with the same key is done once and answered alike.

A key is claimed before the body is read, under a lease; the answer is recorded with its
fingerprint. Failures are not recorded: they release the claim, so that the repeat may succeed.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from on_api.core.crypto.sealing import Sealed
from on_api.core.crypto.secrets import UnknownSecretError
from on_api.core.errors import BadRequest, Conflict, InProgress, ServiceUnavailable
from on_api.core.models import Database, IdempotencyRecord
from on_api.core.models.database import database_now, insert_or_lock, moment_of, new_id
from on_api.core.models.idempotency import KEY_LENGTH, ROUTE_LENGTH
from on_api.core.services.accounts.access import Principal
from on_api.core.services.accounts.master_secret import RowSealer
from on_api.core.services.shared.renewal import renewed

MEMORY = timedelta(hours=24)
"""How long an answer is kept."""
FINGERPRINT_BYTES = 32
_HEADERS = b"\0"
"""Begins the headers of an answer that has some; no body of JSON begins so."""

_KEY = re.compile(rf"[\x21-\x7e]{{1,{KEY_LENGTH}}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to do this request now."""

    id: uuid.UUID
    token: uuid.UUID


@dataclass(frozen=True, slots=True)
class Answered:
    """The request was done before: what was answered to which fingerprint."""

    fingerprint: bytes
    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    """Those that belong to this answer, besides what the body's own would be."""

    def as_bytes(self) -> bytes:
        """Everything but the status, to be sealed."""
        told = b""
        if self.headers:
            named = json.dumps(self.headers).encode()
            told = _HEADERS + len(named).to_bytes(4, "big") + named
        return self.fingerprint + told + self.body

    @classmethod
    def of(cls, status: int, opened: bytes) -> Self:
        """What `as_bytes` wrote."""
        mark, rest = opened[:FINGERPRINT_BYTES], opened[FINGERPRINT_BYTES:]
        headers: tuple[tuple[str, str], ...] = ()
        if rest.startswith(_HEADERS):
            end = 5 + int.from_bytes(rest[1:5], "big")
            headers = tuple((name, value) for name, value in json.loads(rest[5:end]))
            rest = rest[end:]
        return cls(mark, status, rest, headers)

    def for_repeat(self, *fingerprints: bytes) -> Answered:
        """This answer, if the repeat is the same request by one of its fingerprints. Raises
        `Conflict` otherwise."""
        if self.fingerprint not in fingerprints:
            raise Conflict("This Idempotency-Key was used for another request.")
        return self


class AlreadyAnswered(Exception):
    """Carries the recorded answer past the handler, which must not run again."""

    def __init__(self, answer: Answered) -> None:
        super().__init__()
        self.answer = answer


class IdempotencyService:
    """Claims keys and records answers, over all processes. A claim of a crash is free after
    `lease_seconds`."""

    def __init__(self, database: Database, sealer: RowSealer, lease_seconds: int) -> None:
        self._database = database
        self._sealer = sealer
        self._life = timedelta(seconds=lease_seconds)

    def claim(self, principal: Principal, route: str, key: str) -> Claim | Answered:
        """Claim a key, or learn what was answered. Raises `InProgress` while somebody else does
        the request."""
        if _KEY.fullmatch(key) is None:
            raise BadRequest(f"Idempotency-Key: 1 to {KEY_LENGTH} visible ASCII characters.")
        token = new_id()
        place = {
            "user_id": principal.user_id,
            "key_id": principal.key_id,
            "route": route[:ROUTE_LENGTH],
            "key": key,
        }
        with self._database.session_scope() as session:
            record = insert_or_lock(
                session,
                IdempotencyRecord,
                list(place),
                id=new_id(),
                token=token,
                lease_until=database_now(self._life),
                secret_version=0,  # nothing is sealed yet
                created_at=database_now(),
                **place,
            )
            if record.token == token:
                return Claim(record.id, token)
            now = moment_of(session)
            if record.answer is not None and now - record.created_at < MEMORY:
                return self._answered(record)
            if record.answer is None and record.lease_until > now:
                seconds = int((record.lease_until - now).total_seconds()) + 1
                raise InProgress(retry_after=min(seconds, 5))
            # A crash's claim, or an answer that is forgotten: begun anew.
            record.token, record.lease_until, record.created_at = token, now + self._life, now
            record.answer = record.status = None
            return Claim(record.id, token)

    def lock(self, session: Session, claims: Sequence[Claim]) -> Collection[uuid.UUID]:
        """Ids of those claims that are still theirs: so they stay to the end of the transaction."""
        if not claims:
            return ()
        return session.scalars(
            select(IdempotencyRecord.id)
            .where(
                IdempotencyRecord.id.in_([claim.id for claim in claims]),
                IdempotencyRecord.token.in_([claim.token for claim in claims]),
            )
            .order_by(IdempotencyRecord.id)
            .with_for_update()
        ).all()

    def finish(self, session: Session, claim: Claim, answer: Answered) -> None:
        """Record the answer in the transaction of what it tells.

        Raises `ServiceUnavailable` when the claim is not ours any more: then nothing may be done
        under it.
        """
        sealed = self._sealer.seal(session, answer.as_bytes(), claim.id.bytes)
        record = session.scalar(
            update(IdempotencyRecord)
            .where(IdempotencyRecord.id == claim.id, IdempotencyRecord.token == claim.token)
            .values(
                status=answer.status,
                answer=sealed.data,
                secret_version=sealed.version,
                created_at=database_now(),  # it is kept from now on
            )
            .returning(IdempotencyRecord.id)
        )
        if record is None:
            raise ServiceUnavailable("This took too long and was given up; send it again.")

    def release(self, claim: Claim) -> None:
        """Give a claim without an answer back: the request failed and may be tried again."""
        with self._database.session_scope() as session:
            session.execute(
                delete(IdempotencyRecord).where(
                    IdempotencyRecord.id == claim.id,
                    IdempotencyRecord.token == claim.token,
                    IdempotencyRecord.answer.is_(None),
                )
            )

    def kept_alive(self, claim: Claim) -> AbstractAsyncContextManager[None]:
        """Renew the claim while the block runs."""
        return renewed(lambda: self._renew(claim), self._life)

    def _renew(self, claim: Claim) -> None:
        with self._database.session_scope() as session:
            session.execute(
                update(IdempotencyRecord)
                .where(IdempotencyRecord.id == claim.id, IdempotencyRecord.token == claim.token)
                .values(lease_until=database_now(self._life))
            )

    def _answered(self, record: IdempotencyRecord) -> Answered:
        if record.answer is None or record.status is None:
            raise ServiceUnavailable
        sealed = Sealed(record.secret_version, record.answer)
        try:
            opened = self._sealer.open(sealed, record.id.bytes)
        except UnknownSecretError:
            raise ServiceUnavailable("The answer was sealed by another master secret.") from None
        return Answered.of(record.status, opened)


def fingerprint(*parts: str | bytes) -> bytes:
    """SHA-256 over parts, each with its length before it, so that none runs into the next."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.digest()


def forget_old_answers(session: Session) -> None:
    """Delete what is older than answers are kept, but no claim of a request that goes on."""
    session.execute(
        delete(IdempotencyRecord).where(
            IdempotencyRecord.created_at < database_now(-MEMORY),
            or_(
                IdempotencyRecord.answer.is_not(None),
                IdempotencyRecord.lease_until < database_now(),
            ),
        )
    )
