"""Which master secret seals, as processes see it that have heard nothing; and for whom a rotation
waits."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from on_api.core.crypto.secrets import Keyring, create_secret_file
from on_api.core.errors import SecretUnavailable, StartupError
from on_api.core.models import Database, Process
from on_api.core.models.database import utc_now
from on_api.core.models.invalidation import Invalidations
from on_api.core.services.accounts import rotation
from on_api.core.services.accounts.audit import COMMAND_LINE
from on_api.core.services.accounts.container import Accounts
from on_api.core.services.accounts.keys import KeyRequest
from on_api.core.services.accounts.presence import DEAD_AFTER, Presence, live_processes
from on_api.core.services.accounts.rotation import begin_rotation, rotate_rows
from on_api.core.services.files.identities import IdentityService
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker
from on_api.tests.testing.deadline import until

Make = Callable[..., Settings]


@pytest.fixture
def settings(new_database: DatabaseMaker, settings_for: Make, tmp_path: Path) -> Settings:
    """With a secret in a file."""
    create_secret_file(tmp_path)
    return settings_for(new_database(), secret_key=None)


@contextmanager
def process(settings: Settings) -> Iterator[Accounts]:
    """A process that doesn't listen to news."""
    accounts = Accounts.build(settings)
    yield accounts
    accounts.database.dispose()


def rotate(accounts: Accounts, *, lost: bool = False) -> rotation.Rotation:
    """As the command does it."""
    with accounts.database.session_scope() as session:
        keyring = begin_rotation(session, accounts.settings, lost=lost)
    return rotate_rows(accounts.database, keyring, accounts.settings)


def test_the_next_seal_is_under_the_new_secret(settings: Settings) -> None:
    """In a process that was told nothing; and the old one is dropped with nothing left behind."""
    with process(settings) as running, process(settings) as command:
        identities = IdentityService(running.keyring)
        with running.database.session_scope() as session:
            user = running.users.create(session, "ada", None, COMMAND_LINE, is_admin=True)
            before = identities.rotate(session, user.id, COMMAND_LINE)
        old = before.secret_version
        done = rotate(command)
        assert (done.sealed_anew, done.secrets_left) == (1, 0)
        with running.database.session_scope() as session:
            after = identities.rotate(session, user.id, COMMAND_LINE)
            key, _ = running.keys.issue(
                session, user.id, KeyRequest("k", frozenset()), COMMAND_LINE
            )
        fresh = Keyring.load(settings)
        assert fresh.versions == [after.secret_version] == [key.secret_version] != [old]
        with running.database.session_scope() as session:
            assert len(identities.export(session, user.id, COMMAND_LINE)) == 2


def test_nothing_is_sealed_without_the_secret_in_use(settings: Settings, tmp_path: Path) -> None:
    """Another one would be as good as none for all other processes. Given up by name only."""
    with process(settings) as first, first.database.session_scope() as session:
        user = first.users.create(session, "ada", None, COMMAND_LINE, is_admin=True)
        first.keys.issue(session, user.id, KeyRequest("k", frozenset()), COMMAND_LINE)
    (tmp_path / "secret.key").unlink()
    with (
        process(settings) as without,
        pytest.raises(SecretUnavailable),
        without.database.session_scope() as session,
    ):
        without.keys.issue(session, user.id, KeyRequest("k", frozenset()), COMMAND_LINE)
    create_secret_file(tmp_path)
    with process(settings) as other:
        with pytest.raises(SecretUnavailable), other.database.session_scope() as session:
            other.keys.issue(session, user.id, KeyRequest("k", frozenset()), COMMAND_LINE)
        with other.database.session_scope(write=False) as session:
            problem = rotation.secret_problem(session, other.keyring)
        assert problem is not None
        with pytest.raises(StartupError, match="--lost"):
            rotate(other)
        assert rotate(other, lost=True).lost == 1
        with other.database.session_scope() as session:
            other.keys.issue(session, user.id, KeyRequest("k", frozenset()), COMMAND_LINE)


def show(database: Database, *versions: int, silent: timedelta = timedelta(0)) -> None:
    """A process of another machine."""
    with database.session_scope() as session:
        session.add(
            Process(
                id=uuid.uuid4(),
                host="elsewhere",
                pid=17,
                seen_at=utc_now() - silent,
                used_version=versions[0] if versions else None,
                secret_versions=list(versions),
            )
        )


def test_who_lacks_the_new_secret_is_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is dead; and nothing is put into use that somebody can't open. Those that have no
    secret at all are not asked."""
    monkeypatch.setattr(rotation, "PATIENCE_SECONDS", 0.2)
    with process(settings) as command:
        old = command.keyring.version
        with command.database.session_scope() as session:
            user = command.users.create(session, "ada", None, COMMAND_LINE, is_admin=True)
            first, _ = command.keys.issue(
                session, user.id, KeyRequest("k", frozenset()), COMMAND_LINE
            )
        show(command.database, old)
        with pytest.raises(StartupError, match="process 17 on elsewhere"):
            rotate(command)
        with command.database.session_scope() as session:
            key, _ = command.keys.issue(
                session, user.id, KeyRequest("k", frozenset()), COMMAND_LINE
            )
            session.query(Process).delete()
        assert key.secret_version == first.secret_version == old
        show(command.database, old, silent=2 * DEAD_AFTER)
        show(command.database)
        assert rotate(command).waiting_for == []


def test_who_has_it_and_goes_on_with_the_old_one_is_kept_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row needs the old secret, but a process that is up may."""
    monkeypatch.setattr(rotation, "TOLD_SECONDS", 0.2)
    with process(settings) as command:
        old = command.keyring.version
        with command.database.session_scope() as session:
            new = begin_rotation(session, settings).latest
        show(command.database, old, new)
        done = rotate(command)
        assert done.waiting_for == ["process 17 on elsewhere"]
        assert set(Keyring.load(settings).versions) == {old, new}
        with command.database.session_scope() as session:
            session.query(Process).delete()
        assert rotate(command).secrets_left == 0
        assert Keyring.load(settings).versions == [new]


def test_a_process_shows_itself_and_what_it_has(settings: Settings) -> None:
    """It takes over what another one has put into use, and is gone when it has stopped."""
    with process(settings) as running, process(settings) as command:
        news = Invalidations(running.database)
        presence = Presence(running.database, running.keyring, news)
        news.start()
        presence.start()

        def shown() -> list[tuple[int | None, list[int]]]:
            with command.database.session_scope(write=False) as session:
                return [(p.used_version, p.secret_versions) for p in live_processes(session)]

        old = running.keyring.version
        until(lambda: shown() == [(old, [old])], "it is there")
        with command.database.session_scope() as session:
            new = begin_rotation(session, settings).latest
            command.invalidations.announce(session)
        until(lambda: new in shown()[0][1], "it has the new one")
        keyring = Keyring.load(settings)
        done = rotate_rows(command.database, keyring, settings, command.invalidations)
        assert done.waiting_for == []
        assert running.keyring.version == new
        presence.stop()
        news.stop()
        assert shown() == []
