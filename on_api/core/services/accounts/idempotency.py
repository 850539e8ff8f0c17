"""`Idempotency-Key`: a repeated request with the same key is executed once and gets the same
answer.

A key is claimed before the body is read, under a lease; the answer is recorded with the request's
fingerprint. Failures are not recorded: they release the claim, so that a retry may succeed.
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
"""Time for which an answer is kept."""
FINGERPRINT_BYTES = 32
_HEADERS = b"\0"
"""First byte of sealed headers; no JSON body begins with it."""

_KEY = re.compile(rf"[\x21-\x7e]{{1,{KEY_LENGTH}}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class IdempotencyClaim:
    """The right to execute this request now."""

    id: uuid.UUID
    token: uuid.UUID


@dataclass(frozen=True, slots=True)
class Answered:
    """The recorded answer to an earlier request, with that request's fingerprint."""

    fingerprint: bytes
    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    """Headers of this answer besides those that its body implies."""

    def as_bytes(self) -> bytes:
        """Return everything but the status, to be sealed."""
        header_part = b""
        if self.headers:
            named = json.dumps(self.headers).encode()
            header_part = _HEADERS + len(named).to_bytes(4, "big") + named
        return self.fingerprint + header_part + self.body

    @classmethod
    def of(cls, status: int, opened: bytes) -> Self:
        """Restore an answer from its status and what `as_bytes` returned."""
        mark, rest = opened[:FINGERPRINT_BYTES], opened[FINGERPRINT_BYTES:]
        headers: tuple[tuple[str, str], ...] = ()
        if rest.startswith(_HEADERS):
            end = 5 + int.from_bytes(rest[1:5], "big")
            headers = tuple((name, value) for name, value in json.loads(rest[5:end]))
            rest = rest[end:]
        return cls(mark, status, rest, headers)

    def for_repeat(self, *fingerprints: bytes) -> Answered:
        """Return this answer if one of the repeat's fingerprints matches. Raises `Conflict`
        otherwise."""
        if self.fingerprint not in fingerprints:
            raise Conflict("This Idempotency-Key was already used for a different request.")
        return self


class AlreadyAnswered(Exception):
    """Signal that carries the recorded answer past the handler, which must not run again."""

    def __init__(self, answer: Answered) -> None:
        super().__init__()
        self.answer = answer


class IdempotencyService:
    """Service that claims keys and records answers, for all processes. A claim left by a crash is
    free after `lease_seconds`."""

    def __init__(self, database: Database, sealer: RowSealer, lease_seconds: int) -> None:
        self._database = database
        self._sealer = sealer
        self._life = timedelta(seconds=lease_seconds)

    def claim(self, principal: Principal, route: str, key: str) -> IdempotencyClaim | Answered:
        """Claim a key, or return the recorded answer. Raises `BadRequest` for a malformed key, and
        `InProgress` while another request holds the claim."""
        if _KEY.fullmatch(key) is None:
            raise BadRequest(
                f"Idempotency-Key: must be 1 to {KEY_LENGTH} visible ASCII characters."
            )
        token = new_id()
        identity = {
            "user_id": principal.user_id,
            "key_id": principal.key_id,
            "route": route[:ROUTE_LENGTH],
            "key": key,
        }
        with self._database.session_scope() as session:
            record = insert_or_lock(
                session,
                IdempotencyRecord,
                list(identity),
                id=new_id(),
                token=token,
                lease_until=database_now(self._life),
                secret_version=0,  # nothing is sealed yet
                created_at=database_now(),
                **identity,
            )
            if record.token == token:
                return IdempotencyClaim(record.id, token)
            now = moment_of(session)
            if record.answer is not None and now - record.created_at < MEMORY:
                return self._answered(record)
            if record.answer is None and record.lease_until > now:
                seconds = int((record.lease_until - now).total_seconds()) + 1
                raise InProgress(retry_after=min(seconds, 5))
            # A claim left by a crash, or an outdated answer: claimed again.
            record.token, record.lease_until, record.created_at = token, now + self._life, now
            record.answer = record.status = None
            return IdempotencyClaim(record.id, token)

    def lock(self, session: Session, claims: Sequence[IdempotencyClaim]) -> Collection[uuid.UUID]:
        """Lock the claims that are still held and return their ids; they stay held until the end of
        the transaction."""
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

    def finish(self, session: Session, claim: IdempotencyClaim, answer: Answered) -> None:
        """Record the answer in the same transaction as the result that it describes.

        Raises `ServiceUnavailable` when the claim is no longer held: then nothing may be done under
        it.
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
            raise ServiceUnavailable("The request took too long and was cancelled; send it again.")

    def release(self, claim: IdempotencyClaim) -> None:
        """Give up a claim without an answer: the request failed and may be retried."""
        with self._database.session_scope() as session:
            session.execute(
                delete(IdempotencyRecord).where(
                    IdempotencyRecord.id == claim.id,
                    IdempotencyRecord.token == claim.token,
                    IdempotencyRecord.answer.is_(None),
                )
            )

    def kept_alive(self, claim: IdempotencyClaim) -> AbstractAsyncContextManager[None]:
        """Renew the claim while the block runs."""
        return renewed(lambda: self._renew(claim), self._life)

    def _renew(self, claim: IdempotencyClaim) -> None:
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
            raise ServiceUnavailable(
                "The stored response was encrypted with a different master secret."
            ) from None
        return Answered.of(record.status, opened)


def fingerprint(*parts: str | bytes) -> bytes:
    """Return the SHA-256 over all parts, each preceded by its length so that parts cannot run
    together."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.digest()


def forget_old_answers(session: Session) -> None:
    """Delete answers and expired claims older than `MEMORY`; claims of running requests stay."""
    session.execute(
        delete(IdempotencyRecord).where(
            IdempotencyRecord.created_at < database_now(-MEMORY),
            or_(
                IdempotencyRecord.answer.is_not(None),
                IdempotencyRecord.lease_until < database_now(),
            ),
        )
    )
