"""A home that `on-api init` has made, for tests of what comes after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from on_api.tests.testing.processes import Home


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
