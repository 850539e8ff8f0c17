"""A home that `on-api init` has made, for tests of what comes after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from on_api.tests.cli.processes import Home


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All here start programs: a stage of `make test` of its own."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("processes")


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once; nobody serves from it, nobody changes it."""
    home = Home(tmp_path_factory.mktemp("initialised") / "home")
    home.init()
    return home.path


@pytest.fixture
def home(tmp_path: Path, initialised: Path) -> Home:
    """A home in which nothing was done yet; its `init` copies what the command has made before."""
    return Home(tmp_path / "home", template=initialised)
