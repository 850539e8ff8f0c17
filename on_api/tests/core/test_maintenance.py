"""Who looks before they begin, and who begins meanwhile: two transactions that don't see each
other on PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import select, text

from on_api.core.errors import ServiceUnavailable
from on_api.core.models import ApiKey, Database, File, Lease, Pin, User, UserUsage
from on_api.core.models.database import database_now, new_id, utc_now
from on_api.core.services.accounts.audit import COMMAND_LINE
from on_api.core.services.accounts.container import Accounts
from on_api.core.services.content import contents, maintenance, recorder
from on_api.core.services.content.maintenance import GARBAGE, LIFE, Turn
from on_api.tests.conftest import DatabaseMaker, make_settings
from on_api.tests.testing.deadline import until
from on_api.tests.testing.rows import pin_row
from on_api.worker.removal import remove_deleted_accounts


@pytest.fixture
def postgresql(
    postgres_database: DatabaseMaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """A database of its own, where several write at once."""
    database = Database(make_settings(tmp_path_factory.mktemp("home"), postgres_database()))
    yield database
    database.dispose()


def waits_or_is_done(database: Database, future: Future[object]) -> bool:
    """Whether somebody waits for a lock, or what was to wait has gone on."""
    with database.session_scope(write=False) as session:
        waiting = session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))
    return bool(waiting) or future.done()


def test_no_collection_begins_beside_a_lease(postgresql: Database) -> None:
    """Of one that is not committed yet: the collection waits for it, and then sees it."""
    lease_id = new_id()
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        session = stack.enter_context(postgresql.session_scope())
        maintenance.require_no_collection(session)
        session.add(Lease(id=lease_id, kind="upload", lease_until=database_now(LIFE)))
        session.flush()
        collecting: Future[object] = pool.submit(Turn, postgresql, GARBAGE)
        until(lambda: waits_or_is_done(postgresql, collecting), "the collection waits")
        assert not collecting.done()
        stack.close()
        collecting.result(30)
    with postgresql.session_scope(write=False) as session:
        live = select(Lease.id).where(Lease.lease_until > database_now())
        assert session.scalars(live).all() == [lease_id]
        assert maintenance.is_under_way(session, GARBAGE)
    with postgresql.session_scope() as session, pytest.raises(ServiceUnavailable):
        maintenance.require_no_collection(session)


def test_an_account_is_removed_while_its_upload_is_recorded(postgresql: Database) -> None:
    """Neither waits for the other in a ring; the file goes with the account."""
    user_id = new_id()
    with postgresql.session_scope() as session:
        user = User(id=user_id, username="ada", is_admin=False, active=True)
        user.usage = UserUsage(file_count=0, storage_bytes=0, reserved_bytes=0)
        user.deleted_at = utc_now()
        session.add(user)
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        session = stack.enter_context(postgresql.session_scope())
        usage = contents.lock_usage(session, user_id)
        removing: Future[object] = pool.submit(remove_deleted_accounts, postgresql)
        until(lambda: waits_or_is_done(postgresql, removing), "the removal has come here")
        recorder.add_reference(session, usage, "a cid", 10)
        usage.file_count += 1
        session.add(_file(user_id))
        session.flush()
        stack.close()
        assert removing.result(60) is False  # to be tried again soon, not in a minute
    remove_deleted_accounts(postgresql)
    with postgresql.session_scope(write=False) as session:
        assert session.scalars(select(User.id)).all() == []
        assert session.scalars(select(File.id)).all() == []


def test_an_accounts_pins_are_removed_while_their_leases_are_renewed(postgresql: Database) -> None:
    """Whoever renews several has locked the first by id: neither waits for the other in a ring."""
    user_id, ids = new_id(), sorted(new_id() for _ in range(2))
    with postgresql.session_scope() as session:
        user = User(id=user_id, username="ada", is_admin=False, active=True)
        user.usage = UserUsage(file_count=0, storage_bytes=0, reserved_bytes=0)
        user.deleted_at = utc_now()
        session.add(user)
        session.flush()
        for pin_id, cid in zip(ids, ("b", "a"), strict=True):
            session.add(pin_row(user_id, cid, id=pin_id, attempts=1))
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        session = stack.enter_context(postgresql.session_scope())
        locking = [select(Pin.id).where(Pin.id == pin_id).with_for_update() for pin_id in ids]
        session.execute(locking[0])
        removing: Future[object] = pool.submit(remove_deleted_accounts, postgresql)
        until(lambda: waits_or_is_done(postgresql, removing), "the removal has come here")
        session.execute(locking[1])
        stack.close()
        assert removing.result(60) is True


@pytest.mark.parametrize("changes", [None, {"active": False}], ids=["deleted", "deactivated"])
def test_an_account_ends_while_its_upload_is_recorded(
    postgresql: Database, tmp_path: Path, changes: dict[str, bool] | None
) -> None:
    """Whoever ends it waits for the upload, which has locked its key and then refers to its
    user."""
    users = Accounts.build(
        make_settings(tmp_path, postgresql.engine.url.render_as_string(hide_password=False))
    ).users
    user_id, key_id = new_id(), new_id()
    with postgresql.session_scope() as session:
        user = User(id=user_id, username="ada", is_admin=False, active=True)
        user.usage = UserUsage(file_count=0, storage_bytes=0, reserved_bytes=0)
        session.add_all([user, User(id=new_id(), username="eve", is_admin=True, active=True)])
        session.flush()
        session.add(
            ApiKey(
                id=key_id,
                user_id=user_id,
                kind="token",
                name="a key",
                prefix="p",
                digest=bytes(32),
                secret_version=1,
                scopes=[],
            )
        )

    def end() -> None:
        with postgresql.session_scope() as session:
            if changes is None:
                users.delete(session, user_id, COMMAND_LINE)
            else:
                users.change(session, user_id, changes, COMMAND_LINE)

    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        session = stack.enter_context(postgresql.session_scope())
        usage = contents.lock_usage(session, user_id)
        session.get(ApiKey, key_id, with_for_update=True)
        ending: Future[object] = pool.submit(end)
        until(lambda: waits_or_is_done(postgresql, ending), "the account's end waits")
        recorder.add_reference(session, usage, "a cid", 10)
        session.add(_file(user_id))
        session.flush()
        stack.close()
        ending.result(60)


def _file(user_id: uuid.UUID) -> File:
    return File(
        id=new_id(),
        user_id=user_id,
        cid="a cid",
        name="a file",
        size=10,
        media_type="text/plain",
        sha256=bytes(32),
        meta={},
        visibility="public",
        created_at=utc_now(),
    )
