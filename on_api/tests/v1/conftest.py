"""A server on which nothing happens by itself, for the states of pins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from on_api.core.setting_groups import WorkerSettings
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server, make_settings


@pytest.fixture(scope="session")
def resting(
    new_database: DatabaseMaker, kubo: Kubo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server without a worker: what is queued stays queued."""
    settings = make_settings(
        tmp_path_factory.mktemp("resting"),
        new_database(),
        ipfs=kubo.ipfs,
        worker=WorkerSettings(embedded=False),
    )
    with Server(settings) as running:
        yield running


@pytest.fixture
def carol(resting: Server) -> Iterator[Account]:
    """Somebody whose pins nobody works on."""
    account = resting.new_user()
    with account.client:
        yield account


@pytest.fixture
def dave(resting: Server) -> Iterator[Account]:
    """Somebody else."""
    account = resting.new_user()
    with account.client:
        yield account
