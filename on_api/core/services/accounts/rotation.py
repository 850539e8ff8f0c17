"""Rotation of the master secret while processes are up: all of them get the new secret, one commit
puts it into use, rows are sealed again one by one, and secrets that no row and no process needs any
more are dropped.

Everything stays readable meanwhile: earlier secrets are kept beside the new one, and each row names
its own. A rotation killed at any moment is continued by the next call.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import InstrumentedAttribute, Session

from on_api.core.crypto.sealing import Sealed
from on_api.core.crypto.secrets import Keyring, Purpose, keep_previous, rotate_secret_file
from on_api.core.errors import DatabaseUnavailable, StartupError
from on_api.core.models import (
    ApiKey,
    Database,
    IdempotencyRecord,
    Identity,
    Import,
    Process,
    SecretInUse,
)
from on_api.core.models.database import dialect_of, insert_unless_there
from on_api.core.models.invalidation import Invalidations
from on_api.core.services.accounts.keys import is_in_force
from on_api.core.services.accounts.master_secret import RowSealer, learn_version_in_use
from on_api.core.services.accounts.presence import live_processes
from on_api.core.settings import Settings

BATCH_ROWS = 200
PATIENCE_SECONDS = 60.0
"""Seconds to wait for processes that lack the new secret; a killed one counts as dead by then."""
TOLD_SECONDS = 20.0
"""Seconds to wait for processes that have the new secret but have not seen it in use yet."""
SILENT_SECONDS = 2.0
"""Seconds of waiting before the awaited processes are named."""
LOOK_SECONDS = 0.1
LOCK_TIMEOUT = "500ms"
LOCK_ATTEMPTS = 20

_Row = type[Identity] | type[IdempotencyRecord] | type[Import]
_Column = InstrumentedAttribute[bytes] | InstrumentedAttribute[bytes | None]

_SEALED: tuple[tuple[_Row, _Column, Purpose], ...] = (
    (Identity, Identity.wrapped_secret, Purpose.IDENTITIES),
    (IdempotencyRecord, IdempotencyRecord.answer, Purpose.ANSWERS),
    (Import, Import.secrets, Purpose.IMPORTS),
)
"""Sealed columns; each value is bound to its row's id."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """State of a rotation. Keys are digested anew only when they are used: only their HMAC is
    here."""

    sealed_anew: int
    keys_left: int
    """Valid keys not used since, which still need an earlier secret."""
    lost: int
    """Rows sealed with a secret that is not here."""
    secrets_left: int
    """Secrets other than the present one that are still needed."""
    waiting_for: Sequence[str]
    """Processes that are up and have not seen the new secret in use; the old one is kept for
    them."""


def begin_rotation(session: Session, settings: Settings, *, lost: bool = False) -> Keyring:
    """Provide a secret to put into use: the first one in the settings, or one in a new file. An
    unfinished rotation is continued. Changes nothing else.

    Raises `StartupError` where the secret in use is not here, unless it is `lost` for good.
    """
    present = Keyring.load(settings)
    insert_unless_there(session, SecretInUse, id=1, version=present.latest)
    in_use = _lock(session).version
    # Loaded under the lock: of two rotations that begin at once the second finds the first one's
    # file.
    keyring = Keyring.load(settings)
    if in_use not in keyring.versions:
        if not lost:
            raise StartupError(
                "The master secret in use is not available here: restore it, as `on-api"
                " doctor` explains. If it is permanently lost, run this command again with"
                " --lost."
            )
    elif settings.secret_key is None and len(keyring.versions) == 1:
        rotate_secret_file(settings.home)
        keyring = Keyring.load(settings)
    return keyring


def rotate_rows(
    database: Database,
    keyring: Keyring,
    settings: Settings,
    invalidations: Invalidations | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Rotation:
    """Put the keyring's latest secret into use, seal everything under it, and drop secrets that are
    no longer needed.

    Every process that is up must have it first; `invalidations` makes them look for it at once.
    Raises `StartupError` naming the processes that don't get it; then nothing has changed. Secrets
    from `ON_API_PREVIOUS_SECRET_KEYS` are the operator's to drop: `secrets_left` says when.
    """
    version = keyring.latest
    lacking = _wait(database, lambda p: version in p.secret_versions, PATIENCE_SECONDS, say)
    if lacking:
        raise StartupError(
            f"The master secret was not rotated, because {', '.join(lacking)} can't find the"
            " new secret. Copy secret.key and secret.key.previous into its ON_API_HOME, or set"
            " ON_API_SECRET_KEY and ON_API_PREVIOUS_SECRET_KEYS for it and restart it; then"
            " run this command again."
        )
    _put_into_use(database, version, invalidations)
    keyring.use(version)
    sealed_anew = sum(
        _seal_anew(database, keyring, table, column, purpose) for table, column, purpose in _SEALED
    )
    behind = _wait(database, lambda p: p.used_version == version, TOLD_SECONDS, say)
    with database.session_scope() as session:
        in_use = _lock(session).version
        needed = needed_versions(session)
        keys_left = session.scalar(
            select(func.count()).where(is_in_force(), ApiKey.secret_version != version)
        )
        kept = {in_use, *needed}
        for process in live_processes(session):
            if process.used_version != version:
                kept.update(process.secret_versions)
        if settings.secret_key is None:
            keep_previous(settings.home, kept)
    return Rotation(
        sealed_anew,
        keys_left or 0,
        lost=sum(count for earlier, count in needed.items() if earlier not in keyring.versions),
        secrets_left=len(kept & {each for each in keyring.versions if each != version}),
        waiting_for=behind,
    )


def _put_into_use(database: Database, version: int, invalidations: Invalidations | None) -> None:
    """Commit the secret in use; nothing is sealed under another one from then on."""
    for attempt in itertools.count(1):
        try:
            with database.session_scope() as session:
                _lock(session).version = version
                if invalidations is not None:
                    invalidations.announce(session)
        except DatabaseUnavailable:
            # Sealing transactions hold the lock for a moment.
            if attempt == LOCK_ATTEMPTS:
                raise
        else:
            return


def _lock(session: Session) -> SecretInUse:
    """Lock and return the row of the secret in use: waits for transactions that seal, and keeps
    others from sealing until this one ends."""
    if dialect_of(session) == "postgresql":
        # Times out before PostgreSQL looks for deadlocks: it could end a sealing transaction that
        # has waited behind this one for longer, with other locks in hand.
        session.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
    return session.scalars(select(SecretInUse).with_for_update()).one()


def _wait(
    database: Database,
    is_ready: Callable[[Process], bool],
    seconds: float,
    say: Callable[[str], None],
) -> Sequence[str]:
    """Wait until every process that is up is ready. Returns the others: `process 17 on host`."""
    began, announced = time.monotonic(), False
    while True:
        with database.session_scope(write=False) as session:
            # Processes without any secret are not affected.
            up = [each for each in live_processes(session) if each.secret_versions]
            waited_for = [f"process {p.pid} on {p.host}" for p in up if not is_ready(p)]
        waited = time.monotonic() - began
        if not waited_for or waited > seconds:
            return waited_for
        if waited > SILENT_SECONDS and not announced:
            say(f"Waiting for {', '.join(waited_for)}.")
            announced = True
        time.sleep(LOOK_SECONDS)


def needed_versions(session: Session) -> dict[int, int]:
    """Return the number of rows that need each version of the master secret."""
    needed: dict[int, int] = {}
    counts = [
        select(ApiKey.secret_version, func.count())
        .where(is_in_force())
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
    """Return why values sealed under the master secret are not available; None when all is well."""
    if keyring.problem is not None:
        return keyring.problem
    lost = sum(
        count
        for version, count in needed_versions(session).items()
        if version not in keyring.versions
    )
    if not lost:
        if learn_version_in_use(session, keyring):
            return None
        return (
            "the master secret in use is different from the one here: restore the one in use"
            " (ON_API_SECRET_KEY, or secret.key in ON_API_HOME). Until then nothing can be"
            " encrypted, so no keys and identities can be created."
        )
    return (
        f"{lost} keys, identities and stored responses were encrypted with a different master"
        " secret than the one here: restore that one (ON_API_SECRET_KEY, or secret.key in"
        " ON_API_HOME). Until then these keys are refused and private files can't be"
        " decrypted; public files remain available."
    )


def _seal_anew(
    database: Database,
    keyring: Keyring,
    table: _Row,
    column: _Column,
    purpose: Purpose,
) -> int:
    sealer = RowSealer(keyring, purpose)
    done = 0
    while True:
        with database.session_scope() as session:
            rows = _due(session, keyring, table, column)
            for row in rows:
                data = getattr(row, column.key)
                plaintext = sealer.open(Sealed(row.secret_version, data), row.id.bytes)
                sealed = sealer.seal(session, plaintext, row.id.bytes)
                setattr(row, column.key, sealed.data)
                row.secret_version = sealed.version
        done += len(rows)
        if len(rows) < BATCH_ROWS:
            return done


def _due(
    session: Session,
    keyring: Keyring,
    table: _Row,
    column: _Column,
) -> Sequence[Any]:
    """Lock and return up to `BATCH_ROWS` rows of the table that are sealed with a secret not in
    use."""
    others = [version for version in keyring.versions if version != keyring.version]
    return session.scalars(
        select(table)
        .where(column.is_not(None), table.secret_version.in_(others))
        .limit(BATCH_ROWS)
        .with_for_update()
    ).all()
