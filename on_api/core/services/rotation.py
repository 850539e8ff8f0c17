"""Rotating the master secret: what was sealed under an earlier one is sealed anew, row by row, and
a secret that no row needs any more is dropped.

Nothing is unreadable in between: the earlier secrets stay beside the present one, each row names
its own, and processes that run look for new ones when they meet one that they don't know. Killed
at any moment it goes on where it was at the next call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from on_api.core.crypto.sealing import Sealed, Sealer
from on_api.core.crypto.secrets import Keyring, Purpose, keep_previous
from on_api.core.models import ApiKey, Database, IdempotencyRecord, Identity, Import
from on_api.core.models.database import database_now
from on_api.core.settings import Settings

BATCH = 200

_Row = type[Identity] | type[IdempotencyRecord] | type[Import]
_Column = InstrumentedAttribute[bytes] | InstrumentedAttribute[bytes | None]

_SEALED: tuple[tuple[_Row, _Column, Purpose], ...] = (
    (Identity, Identity.wrapped_secret, Purpose.IDENTITIES),
    (IdempotencyRecord, IdempotencyRecord.answer, Purpose.ANSWERS),
    (Import, Import.secrets, Purpose.IMPORTS),
)
"""Every column that is sealed, each bound to its row's id."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """How far it is. Keys can't be digested anew before they are used: only their HMAC is here."""

    sealed_anew: int
    keys_left: int
    """Valid keys that were not used since, and still need an earlier secret."""
    lost: int
    """Rows that belong to a secret which is not here."""
    secrets_left: int
    """Secrets before the present one that are still needed."""


def rotate_rows(database: Database, keyring: Keyring, settings: Settings) -> Rotation:
    """Seal everything under the present secret, and drop the secrets that nobody needs.

    Secrets from `ON_API_PREVIOUS_SECRET_KEYS` are the operator's to drop: `secrets_left` says when.
    """
    sealed_anew = sum(
        _seal_anew(database, keyring, table, column, purpose) for table, column, purpose in _SEALED
    )
    with database.session_scope(write=False) as session:
        needed = needed_versions(session)
        keys_left = session.scalar(
            select(func.count()).where(_is_live(), ApiKey.secret_version != keyring.version)
        )
    if settings.secret_key is None:
        keep_previous(settings.home, needed)
    return Rotation(
        sealed_anew,
        keys_left or 0,
        lost=sum(count for version, count in needed.items() if version not in keyring.versions),
        secrets_left=len(needed.keys() & set(keyring.versions[1:])),
    )


def needed_versions(session: Session) -> dict[int, int]:
    """How many rows need each version of the master secret."""
    needed: dict[int, int] = {}
    counts = [
        select(ApiKey.secret_version, func.count())
        .where(_is_live())
        .group_by(ApiKey.secret_version),
        *(
            select(table.secret_version, func.count())
            .where(column.is_not(None))
            .group_by(table.secret_version)
            for table, column, _ in _SEALED
        ),
    ]
    for statement in counts:
        for version, count in session.execute(statement):
            if version is not None:
                needed[version] = needed.get(version, 0) + count
    return needed


def secret_problem(session: Session, keyring: Keyring) -> str | None:
    """Why what the master secret protects can't be had; None when all is well."""
    if keyring.problem is not None:
        return keyring.problem
    lost = sum(
        count
        for version, count in needed_versions(session).items()
        if version not in keyring.versions
    )
    if not lost:
        return None
    return (
        f"{lost} keys, identities and answers belong to another master secret than the one here: "
        "restore that one (ON_API_SECRET_KEY, or secret.key in ON_API_HOME). Until then these keys "
        "are refused and private files can't be opened; public files are served."
    )


def _seal_anew(
    database: Database,
    keyring: Keyring,
    table: _Row,
    column: _Column,
    purpose: Purpose,
) -> int:
    sealer = Sealer(keyring, purpose)
    done = 0
    while True:
        with database.session_scope() as session:
            rows = _due(session, keyring, table, column)
            for row in rows:
                data = getattr(row, column.key)
                plain = sealer.open(Sealed(row.secret_version, data), row.id.bytes)
                sealed = sealer.seal(plain, row.id.bytes)
                setattr(row, column.key, sealed.data)
                row.secret_version = sealed.version
        done += len(rows)
        if len(rows) < BATCH:
            return done


def _due(
    session: Session,
    keyring: Keyring,
    table: _Row,
    column: _Column,
) -> Sequence[Any]:
    """Rows of the table that an earlier secret has sealed."""
    earlier = list(keyring.versions[1:])
    return session.scalars(
        select(table)
        .where(column.is_not(None), table.secret_version.in_(earlier))
        .limit(BATCH)
        .with_for_update()
    ).all()


def _is_live() -> ColumnElement[bool]:
    """Keys that could still be used."""
    return and_(
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > database_now()),
    )
