"""Fixtures of the tests of core."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from on_api.core.crypto import aead
from on_api.core.models import Database
from on_api.core.setting_groups import WorkerSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Server, make_settings
from on_api.tests.testing.metering import Stage, staged


@pytest.fixture(scope="module", params=["pycryptodome", "cryptography"])
def each_aead(request: pytest.FixtureRequest) -> Iterator[str]:
    """The whole module, once without the extra `fast` and once with it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "pycryptodome":
            patch.setattr(aead, "chosen", lambda: aead.PycryptodomeAead)
        assert aead.chosen().library == request.param
        yield request.param


@pytest.fixture(scope="module")
def database(
    new_database: DatabaseMaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """A migrated database of each kind."""
    database = Database(make_settings(tmp_path_factory.mktemp("home"), new_database()))
    yield database
    database.dispose()


@pytest.fixture
def stage(database: Database) -> Iterator[Stage]:
    """Meters on it."""
    with staged(database) as stage:
        yield stage


@pytest.fixture
def own(new_database: DatabaseMaker, settings_for: Callable[..., Settings]) -> Iterator[Server]:
    """A server on each kind of database, for one test, without a worker that would change things
    meanwhile."""
    settings = settings_for(new_database(), worker=WorkerSettings(embedded=False))
    with Server(settings) as running:
        yield running


@pytest.fixture
def user(own: Server) -> Iterator[Account]:
    """Somebody there."""
    account = own.new_user()
    with account.client:
        yield account
