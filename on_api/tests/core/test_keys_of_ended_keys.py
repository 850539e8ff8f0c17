"""A key that ends while it makes another one: either it made it before, or it makes none."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from on_api.core.errors import Unauthorized
from on_api.core.models import ApiKey
from on_api.core.services.accounts.access import Principal, Scope
from on_api.core.services.accounts.audit import COMMAND_LINE
from on_api.core.services.accounts.authentication import Authenticator
from on_api.core.services.accounts.container import Accounts
from on_api.core.services.accounts.keys import KeyRequest
from on_api.tests.conftest import DatabaseMaker, make_settings
from on_api.tests.testing.deadline import until

REQUEST = KeyRequest("one that lasts", frozenset({Scope.FILES_READ}))

End = Callable[[Accounts, Session, Principal], object]


def revoke(accounts: Accounts, session: Session, maker: Principal) -> None:
    """The key."""
    accounts.keys.revoke(session, maker.user_id, maker.key_id, COMMAND_LINE)


def deactivate(accounts: Accounts, session: Session, maker: Principal) -> None:
    """Its user."""
    accounts.users.change(session, maker.user_id, {"active": False}, COMMAND_LINE)


def delete(accounts: Accounts, session: Session, maker: Principal) -> None:
    """Its user, for good."""
    accounts.users.delete(session, maker.user_id, COMMAND_LINE)


ENDS = [revoke, deactivate, delete]


def build(home: Path, url: str) -> Iterator[Accounts]:
    """The accounts of one process, in which somebody administers."""
    accounts = Accounts.build(make_settings(home, url))
    with accounts.database.session_scope() as session:
        accounts.users.create(session, "eve", None, COMMAND_LINE, is_admin=True)
    yield accounts
    accounts.database.dispose()


@pytest.fixture
def accounts(new_database: DatabaseMaker, tmp_path: Path) -> Iterator[Accounts]:
    """On either database."""
    yield from build(tmp_path, new_database())


@pytest.fixture
def postgresql(postgres_database: DatabaseMaker, tmp_path: Path) -> Iterator[Accounts]:
    """Where several write at once."""
    yield from build(tmp_path, postgres_database())


def maker_of(accounts: Accounts) -> Principal:
    """Somebody's key, as a process has it in memory."""
    with accounts.database.session_scope() as session:
        user = accounts.users.create(session, "ada", None, COMMAND_LINE)
        request = KeyRequest("a key", frozenset({Scope.KEYS_WRITE, Scope.FILES_READ}))
        _, secret = accounts.keys.issue(session, user.id, request, COMMAND_LINE)
    authenticator = Authenticator(accounts.database, accounts.keyring, accounts.invalidations)
    return authenticator.authenticate(secret)


def make(accounts: Accounts, maker: Principal) -> uuid.UUID:
    """Another one by it."""
    with accounts.database.session_scope() as session:
        return accounts.keys.create(session, maker, REQUEST, COMMAND_LINE)[0].id


def are_left(accounts: Accounts, maker: Principal) -> bool:
    """Whether the user has a key that was made by another one."""
    made = select(ApiKey.id).where(ApiKey.user_id == maker.user_id, ApiKey.name == REQUEST.name)
    with accounts.database.session_scope(write=False) as session:
        return session.scalar(made) is not None


@pytest.mark.parametrize("end", ENDS)
def test_one_that_has_ended_makes_none(accounts: Accounts, end: End) -> None:
    """Where nobody has told of it."""
    maker = maker_of(accounts)
    make(accounts, maker)
    with accounts.database.session_scope() as session:
        session.execute(text("DELETE FROM keys WHERE name = :name"), {"name": REQUEST.name})
        end(accounts, session, maker)
    with pytest.raises(Unauthorized):
        make(accounts, maker)
    assert not are_left(accounts, maker)


@pytest.mark.parametrize("end", ENDS)
def test_one_that_is_ending_makes_none(postgresql: Accounts, end: End) -> None:
    """Whoever makes one waits for the end that isn't committed yet."""
    maker = maker_of(postgresql)

    def waits(making: Future[uuid.UUID]) -> bool:
        with postgresql.database.session_scope(write=False) as session:
            waiting = session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))
        return bool(waiting) or making.done()

    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        session = stack.enter_context(postgresql.database.session_scope())
        end(postgresql, session, maker)
        session.flush()
        making = pool.submit(make, postgresql, maker)
        until(lambda: waits(making), "who makes a key waits")
        stack.close()
        assert isinstance(making.exception(60), Unauthorized)
    assert not are_left(postgresql, maker)
